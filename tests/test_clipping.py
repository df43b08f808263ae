"""max_grad_norm: one norm over all groups, of gradients that are only read."""

import math

import pytest
import torch
from step_recipes import recipes
from twins import make_params, set_grads


def test_the_norm_spans_groups(optimizer_class):
    params = make_params([(5,), (6,), (7,)], torch.float64)
    params[2].grad = None
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "maximize": True}]
    optimizer = optimizer_class(groups, max_grad_norm=1.0)
    assert optimizer.grad_norm is None
    set_grads(params, seed=0)
    params[2].grad = None
    exact = torch.cat([p.grad for p in params[:2]]).norm()
    optimizer.step()
    assert optimizer.grad_norm.dtype == torch.float64 and optimizer.grad_norm.dim() == 0
    torch.testing.assert_close(optimizer.grad_norm, exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("value", [None, 0, 0.0, math.inf, torch.tensor(2.0)], ids=str)
def test_values_that_max_grad_norm_takes(optimizer_class, value):
    params = make_params([(3,)])
    optimizer = optimizer_class(params, max_grad_norm=value)
    set_grads(params, seed=0)
    optimizer.step()
    assert params[0].isfinite().all()
    assert (optimizer.grad_norm is None) == (value is None)


def test_gradients_are_only_read(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"max_grad_norm": 1e-3, "ema_decay": 0.5})
    set_grads(params, seed=0)
    versions = [p.grad._version for p in params]
    ours.step()
    assert [p.grad._version for p in params] == versions
