"""skip_nonfinite: a step with an Inf or NaN in a gradient changes nothing, and is counted."""

import math

import pytest
import torch
from step_recipes import CASES_AND_PATHS, case_and_path_id, recipes
from twins import assert_unchanged, make_params, same_bits, set_grads, snapshot


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_a_skipped_step_changes_nothing(case, path):
    cls, options = case
    params, _, ours, _ = recipes(cls, options, {"skip_nonfinite": True, "ema_decay": 0.5}, path)
    for first in (True, False):
        set_grads(params, seed=0)
        if not first:
            ours.step()
        before = snapshot(ours)
        for value in (math.inf, -math.inf, math.nan):
            params[3].grad[1234] = value
            grads = [p.grad.clone() for p in params]
            ours.step()
            assert_unchanged(ours, before)
            assert all(same_bits(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert ours.skipped_steps.item() == 6
    assert ours.grad_norm is None


def test_large_but_finite_gradients_are_not_skipped(optimizer_class):
    """Whose squares overflow even float64."""
    params = make_params([(4,)], torch.float64)
    optimizer = optimizer_class(params, skip_nonfinite=True)
    before = params[0].detach().clone()
    params[0].grad = torch.full((4,), 1e154, dtype=torch.float64)
    optimizer.step()
    assert optimizer.skipped_steps.item() == 0
    assert not torch.equal(params[0].detach(), before)


def test_overflows_of_amp_are_counted_with_the_others(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"skip_nonfinite": True})
    for found_inf in (0.0, 1.0, 2.0):
        set_grads(params, seed=0)
        ours.grad_scale, ours.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        ours.step()
    assert ours.skipped_steps.item() == 2
