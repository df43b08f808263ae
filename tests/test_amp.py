"""AMP: scale and overflow are honoured inside the step, and a skipped step leaves no trace."""

import pytest
import torch
from twins import (
    CASES,
    TORCH,
    assert_same_state,
    assert_same_values,
    assert_unchanged,
    case_id,
    copies,
    grad_scaler,
    make_params,
    on_cuda,
    set_grads,
    snapshot,
)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_grad_scale(case, maximize):
    cls, options = case
    options = {**options, "maximize": maximize}
    params = make_params([(7,), (2, 3)], torch.float64)
    other = copies(params)
    ours, theirs = cls(params, **options), TORCH[cls](other, foreach=False, **options)
    for seed in range(4):
        set_grads(params, other, seed=seed)
        for p in params:
            p.grad.mul_(3.0)
        ours.grad_scale, ours.found_inf = torch.tensor(3.0), torch.tensor(0.0)
        ours.step()
        theirs.step()
    assert ours.fallback_reason is None
    assert_same_values(params, other)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("found_inf", [1.0, 2.0, 0.5, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_any_nonzero_found_inf_skips(case, first, found_inf):
    """GradScaler sums found_inf over devices. A first step that overflows leaves no state behind:
    torch's fused SGD keeps an uninitialised momentum buffer."""
    if first and on_cuda():
        pytest.skip("state is there before the device knows of the overflow, as in torch")
    cls, options = case
    params = make_params([(7,), (2, 3)])
    optimizer = cls(params, **options)
    if not first:
        set_grads(params, seed=0)
        optimizer.step()
    before = snapshot(optimizer)
    for p in params:
        p.grad = torch.full_like(p, float("inf"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found_inf)
    optimizer.step()
    assert_unchanged(optimizer, before)


#: Ways to ask for the scale inside the step: as in torch, or by a step option.
ASKED_FOR = [{"fused": True}, {"zero_grads": True}, {"skip_nonfinite": True}]


@pytest.mark.parametrize("path", ["kernels", "torch"])
@pytest.mark.parametrize("asked", [{}, *ASKED_FOR], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_grad_scaler(case, asked, path):
    """20 scaled steps, some overflowing, against torch's optimizer that GradScaler unscales. So it
    does ours, unless scaling inside the step is asked for."""
    cls, options = case
    if "fused" in asked and "fused" not in cls(make_params([(1,)])).defaults:
        pytest.skip("torch's constructor has no such flag")
    params = make_params([(6, 4)], torch.float64)
    if path == "torch":
        wide = torch.zeros(6, 8, dtype=torch.float64)
        wide[:, 2:6] = params[0].detach()
        params = [wide[:, 2:6].detach().requires_grad_()]
    other = [torch.nn.Parameter(params[0].detach().clone().contiguous())]
    ours, theirs = cls(params, **options, **asked), TORCH[cls](other, foreach=False, **options)
    scalers = [grad_scaler(init_scale=64.0, growth_interval=4) for _ in range(2)]
    for i in range(20):
        factor = torch.randn(6, 4, dtype=torch.float64)
        if i in (0, 7, 8):  # the very first step overflows
            factor[2, 3] = float("inf")
        pairs = zip((params[0], other[0]), (ours, theirs), scalers, strict=True)
        for p, optimizer, scaler in pairs:
            optimizer.zero_grad()
            scaler.scale((p * factor).sum()).backward()
            scaled = p.grad.clone()
            scaler.step(optimizer)
            scaler.update()
            if optimizer is ours and asked:
                left = torch.zeros_like(scaled) if "zero_grads" in asked else scaled
                assert torch.equal(p.grad, left)
        if not asked:
            assert torch.equal(params[0].grad, other[0].grad)  # unscaled, as in torch
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert (ours.fallback_reason is None) == (path == "kernels")
    assert not hasattr(ours, "grad_scale") and not hasattr(ours, "found_inf")
    assert_same_values(params, other)


@pytest.mark.parametrize("asked", [{}, {"skip_nonfinite": True}], ids=str)
def test_unscaled_and_clipped_by_the_user(optimizer_class, asked):
    params = make_params([(6,)], torch.float64)
    other = copies(params)
    ours, theirs = optimizer_class(params, **asked), TORCH[optimizer_class](other, foreach=False)
    for p, optimizer in ((params[0], ours), (other[0], theirs)):
        scaler = grad_scaler(init_scale=64.0)
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale((p**2).sum()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p], 0.5)
            scaler.step(optimizer)
            scaler.update()
    assert ours.fallback_reason is None
    assert_same_values(params, other)


def test_bad_scale_changes_nothing(optimizer_class):
    params = make_params([(3,)])
    optimizer = optimizer_class(params)
    set_grads(params, seed=0)
    before = snapshot(optimizer)
    optimizer.found_inf = torch.zeros(2)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        optimizer.step()
    assert_unchanged(optimizer, before)
