"""torch's own step in the kernels' place: what is put away for it comes back, whatever happens."""

import contextlib
import random

import pytest
import torch
from hostile import interrupted
from torch.nn import Parameter
from twins import (
    CASES,
    FUSED,
    TORCH,
    assert_same_state,
    assert_same_values,
    copies,
    make_params,
    set_grads,
)

import fused_optim

#: What constructors refuse or nobody writes, set afterwards: torch's step has its own answers.
UNUSUAL = {
    "lr": [-0.1, 1e300, float("inf"), float("nan")],
    "betas": [(1.0, 0.9), (0.9, 1.0), (-0.5, 0.9), (0.9, float("nan")), (1.5, 1.5)],
    "eps": [-1.0, float("inf")],
    "weight_decay": [-0.1, 1e300, float("nan")],
    "momentum": [-0.5, float("nan"), 1.5],
    "dampening": [-1.0, float("nan")],
    "alpha": [1.0, -1.0, float("nan"), 1.5],
    "rho": [1.0, -1.0],
    "lr_decay": [-1.0, -0.5],
    "lambd": [-100.0, 1e300],
    "t0": [float("nan"), -1.0, float("inf")],
    "momentum_decay": [-1.0, 1e6],
    "nesterov": [1e-300],
    "etas": [(0.0, 1.2), (1e-46, 1.2), (1.0, 1.0), (-0.5, 1.2), (0.5, float("inf"))],
    "step_sizes": [(-1.0, 50.0), (1e-6, float("inf"))],
}
UNUSUAL_CASES = [
    (cls, name, value)
    for cls in FUSED
    if cls is not fused_optim.Lion  # whose errors are not torch's
    for name, values in UNUSUAL.items()
    if name in cls([torch.zeros(1)]).defaults
    for value in values
]


def outcome(optimizer):
    try:
        optimizer.step()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("cls, name, value", UNUSUAL_CASES)
def test_unusual_hyperparameters_get_torchs_answer(cls, name, value):
    options = next(o for c, o in reversed(CASES) if c is cls)
    params = make_params([(5,), (3, 2)])
    others = copies(params)
    ours, theirs = cls(params, **options), TORCH[cls](others, foreach=False, **options)
    for seed in range(4):
        if seed == 1:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0][name] = value
        set_grads(params, others, seed=seed)
        expected = outcome(theirs)
        assert outcome(ours) == expected
        if expected is not None:
            break
    assert_same_values(params, others, rtol=1e-5, atol=1e-6)
    assert_same_state(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_a_parameter_that_changed_its_dtype(count):
    """torch's SGD steps it with the gradient that it has; `p.grad = ...` would refuse that."""
    params = [Parameter(torch.ones(4)) for _ in range(count)]
    grads = [torch.ones(4) for _ in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    params[0].data = params[0].data.bfloat16()
    optimizer = fused_optim.SGD(params, lr=0.5, foreach=True)
    optimizer.step()
    for p, grad in zip(params, grads, strict=True):
        assert p.grad is grad
        assert torch.equal(p.detach(), torch.full_like(p, 0.5))


@pytest.mark.parametrize(
    "attributes", [{}, {"grad_scale": torch.tensor(2.0)}, {"grad_scale": None}]
)
def test_an_error_leaves_gradients_and_attributes(optimizer_class, attributes):
    params = make_params([(3,), (4,), (5,)])
    optimizer = optimizer_class(params, foreach=True, max_grad_norm=0.1)
    set_grads(params, seed=0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = "fast"
    optimizer.param_groups[0]["weight_decay"] = "slow"
    optimizer.param_groups[0]["etas"] = "none"
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    grads = [p.grad for p in params]
    groups = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(Exception):  # noqa: B017 (torch's own)
        optimizer.step()
    assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
    assert all(getattr(optimizer, name) is value for name, value in attributes.items())
    assert not {"grad_scale", "found_inf"} - set(attributes) & set(vars(optimizer))
    assert all(map(dict.__eq__, groups, optimizer.param_groups))


def test_ctrl_c_leaves_gradients_and_attributes():
    whole = torch.zeros(30, 8)
    params = [Parameter(row[:5]) for row in whole[:, None, :].unbind()]
    params = [Parameter(whole[i : i + 1, 1:7:2]) for i in range(30)]  # not dense: torch's path
    optimizer = fused_optim.AdamW(params, max_grad_norm=0.1)
    set_grads(params, seed=0)
    optimizer.step()
    assert "dense" in optimizer.fallback_reason
    scale, found = torch.tensor(2.0), torch.tensor(0.0)
    optimizer.grad_scale, optimizer.found_inf = scale, found
    optimizer.param_groups[0]["fused"] = True
    grads = [p.grad for p in params]
    hits = 0
    for seed in range(150):
        try:
            with interrupted(random.Random(seed).uniform(1e-5, 6e-3)):
                optimizer.step()
        except KeyboardInterrupt:
            hits += 1
        torch.set_grad_enabled(True)  # which torch's step may have left off
        assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
        assert optimizer.grad_scale is scale and optimizer.found_inf is found
        assert optimizer.param_groups[0]["fused"] is True
    assert hits > 10


def test_a_skipped_step_does_not_call_torchs():
    p = Parameter(torch.ones(4)[::2])
    optimizer = fused_optim.Adam([p], skip_nonfinite=True, zero_grads=True)
    p.grad = torch.full((2,), float("inf"))
    optimizer._torch_step = lambda *_: pytest.fail("was called")
    optimizer.step()
    assert not optimizer.state and not p.grad.any() and optimizer.skipped_steps == 1


def test_unscaled_by_the_scaler_on_torchs_path():
    """After scaler.unscale_, GradScaler passes a scale of None and deletes it afterwards."""
    p = Parameter(torch.ones(4)[::2])
    optimizer = fused_optim.SGD([p], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.full((2,), 0.5))
    assert not {"grad_scale", "found_inf"} & set(vars(optimizer))


def test_an_init_group_of_ones_own_is_not_ignored():
    """It chooses which parameters a step takes, and torch's step asks it."""

    class EverySecond(fused_optim.Adam):
        def _init_group(self, group, *lists):
            result = super()._init_group(group, *lists)
            for each in lists:
                del each[::2]
            return result

    params = make_params([(3,), (3,)])
    before = [p.detach().clone() for p in params]
    optimizer = EverySecond(params)
    set_grads(params, seed=0)
    optimizer.step()
    moved = [not torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True)]
    assert moved == [False, True]
    assert "_init_group" in optimizer.fallback_reason

    class Plain(fused_optim.Adam):
        pass

    plain = Plain(params)
    plain.step()
    assert plain.fallback_reason is None
    plain._init_group = lambda *_: False
    with contextlib.suppress(Exception):
        plain.step()
    assert "_init_group" in plain.fallback_reason
