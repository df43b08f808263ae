"""A short run over everything, for other versions of torch: `make test-versions`. By its name the
suite, which has more thorough tests of the same, does not collect it."""

import copy

import pytest
import torch
from twins import (
    CASES,
    FUSED,
    TORCH,
    Twins,
    assert_same_state,
    assert_same_values,
    case_id,
    copies,
    make_params,
    set_grads,
)

import fused_optim

SHAPES = [(5, 7), (33,), (), (200,)]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_twenty_steps(case):
    twins = Twins(*case, shapes=SHAPES, dtype=torch.float64)
    twins.step(20)
    twins.assert_close()
    twins.assert_fused()


def resumed(cls, options, source, params):
    """A new optimizer on copies of the parameters, with the source's state."""
    new_params = copies(params)
    new = cls(new_params, **options)
    new.load_state_dict(copy.deepcopy(source.state_dict()))
    return new, new_params


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_checkpoint_both_ways(case):
    """Torch rounds some scalars when it loads them, its own, too: so it loads on both sides."""
    cls, options = case
    twins = Twins(cls, options, shapes=SHAPES, dtype=torch.float64)
    twins.step(3)
    for_loop = {"foreach": False, **options}
    from_torch = resumed(cls, options, twins.theirs, twins.torch_params)
    to_torch = resumed(TORCH[cls], for_loop, twins.ours, twins.params)
    as_torch = resumed(TORCH[cls], for_loop, twins.theirs, twins.torch_params)
    runs = [from_torch, (twins.theirs, twins.torch_params), to_torch, as_torch]
    for seed in range(3):
        set_grads(*(params for _, params in runs), seed=seed)
        for optimizer, _ in runs:
            optimizer.step()
    for (one, params), (other, other_params) in (runs[:2], runs[2:]):
        assert_same_values(params, other_params)
        assert_same_state(one, other)


@pytest.mark.parametrize("cls", FUSED)
def test_step_options(cls):
    """Clipping, zeroing and averaging inside the step, as torch's functions do it around one."""
    options = {} if cls is fused_optim.Rprop else {"lr": 0.01}
    params = make_params(SHAPES, torch.float64)
    torch_params = copies(params)
    model = torch.nn.ParameterList(torch_params)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    ours = cls(params, max_grad_norm=1.0, zero_grads=True, ema_decay=0.9, **options)
    theirs = TORCH[cls](torch_params, foreach=False, **options)
    for seed in range(20):
        set_grads(params, torch_params, seed=seed)
        ours.step()
        norm = torch.nn.utils.clip_grad_norm_(torch_params, 1.0)
        theirs.step()
        average.update_parameters(model)
        torch.testing.assert_close(ours.grad_norm.to(norm), norm, rtol=1e-12, atol=0)
        assert not any(p.grad.any() for p in params)
    assert_same_values(params, torch_params)
    with ours.ema_parameters():
        assert_same_values(params, list(average.module))


def test_a_class_that_torch_lacks_is_absent():
    for name in torch.optim.__all__:
        assert hasattr(fused_optim, name), name
    for name in ("Muon", "Adafactor"):
        assert hasattr(fused_optim, name) == hasattr(torch.optim, name)
