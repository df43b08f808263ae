"""Where torch's fused CPU path is silently wrong, ours is right. Each test shows one case."""

import pytest
import torch
from torch.nn import Parameter
from twins import (
    CASES,
    TORCH,
    assert_same_values,
    copies,
    grad_scaler,
    make_params,
    set_grads,
)

import fused_optim


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
def test_half_precision_sgd_moves_every_element(dtype, options):
    """pytorch#191763: whole vector blocks stay unchanged."""
    for size in (1, 16, 31, 32, 33, 64, 100, 1000):
        param = Parameter(torch.ones(size, dtype=dtype))
        param.grad = torch.ones_like(param)
        optimizer = fused_optim.SGD([param], lr=0.5, **options)
        optimizer.step()
        decay = options.get("weight_decay", 0)
        expected = torch.full((size,), 1 - 0.5 * (1 + decay)).to(dtype)
        assert torch.equal(param.detach(), expected)


def test_gradient_strides_unlike_the_parameters(optimizer_class):
    """pytorch#110758: elements are paired by memory order, not by index."""
    param = Parameter(torch.randn(8, 4, 3, 3, dtype=torch.float64))
    twin = copies([param])[0]
    grad = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    param.grad = grad.to(memory_format=torch.channels_last)
    twin.grad = grad
    ours = optimizer_class([param])
    ours.step()
    TORCH[optimizer_class]([twin], foreach=False).step()
    assert ours.fallback_reason is None
    assert_same_values([param], [twin])


def test_sliced_parameter_with_fused_true():
    """torch's fused kernels write outside the view; even asked for, they get no such tensor."""
    for cls in (fused_optim.SGD, fused_optim.Adam, fused_optim.AdamW):
        whole = torch.ones(4, 10)
        view = whole[:, 2:5].detach().requires_grad_()
        view.grad = torch.ones(4, 3)
        cls([view], lr=0.5, fused=True).step()
        assert (view != 1).all()
        assert (whole[:, :2] == 1).all() and (whole[:, 5:] == 1).all()


def test_overflow_on_the_first_step_leaves_no_momentum():
    """torch's fused SGD keeps an uninitialised buffer, and the next step uses it."""
    param, twin = (Parameter(torch.ones(1000)) for _ in range(2))
    ours = fused_optim.SGD([param], lr=0.1, momentum=0.9, dampening=0.5)
    theirs = torch.optim.SGD([twin], lr=0.1, momentum=0.9, dampening=0.5, foreach=False)
    scalers = [grad_scaler(init_scale=2.0) for _ in range(2)]
    for i in range(3):
        for p, optimizer, scaler in zip((param, twin), (ours, theirs), scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale((p * (float("inf") if i == 0 else 1.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        if i == 0:
            assert not ours.state
    assert_same_values([param], [twin], rtol=1e-6, atol=1e-7)


def test_first_gradient_some_steps_later():
    """Each parameter has a step of its own; one for the group would miscorrect its bias."""
    for cls in (fused_optim.Adam, fused_optim.AdamW):
        params = make_params([(5,), (5,)], torch.float64)
        alone = copies(params[1:])
        together, single = cls(params), cls(alone)
        for seed in range(8):
            set_grads(params, seed=seed)
            if seed < 5:
                params[1].grad = None
            together.step()
            if seed >= 5:
                alone[0].grad = params[1].grad.clone()
                single.step()
        assert_same_values(params[1:], alone, rtol=0, atol=0)
        assert together.state[params[1]]["step"] == 3


def test_float32_and_bfloat16_in_one_group_count_steps_once():
    """DeepSpeed's FusedAdam counts a step for each dtype of a group."""
    params = [Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    optimizer = fused_optim.AdamW(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [3, 3]


def test_channels_last_parameters_move(optimizer_class):
    """DeepSpeed's CPUAdam leaves them as they are."""
    param = Parameter(torch.ones(4, 3, 5, 5).to(memory_format=torch.channels_last))
    param.grad = torch.ones_like(param)
    optimizer_class([param], lr=0.1).step()
    assert (param < 1).all()


def test_rmsprop_honours_momentum_and_adam_couples_its_decay():
    """bitsandbytes ignores the first and always decouples."""
    for cls, options in CASES:
        if not options.get("momentum") and not options.get("weight_decay"):
            continue
        results = []
        for changed in ({}, {"momentum": 0.0, "nesterov": False}, {"weight_decay": 0.0}):
            params = make_params([(6,)], torch.float64)
            known = {k: v for k, v in changed.items() if k in options}
            optimizer = cls(params, **{**options, **known})
            for seed in range(3):
                set_grads(params, seed=seed)
                optimizer.step()
            results.append((known, params[0].detach()))
        for known, result in results[1:]:
            used = any(options.get(k) for k in known)
            assert torch.equal(result, results[0][1]) != used
