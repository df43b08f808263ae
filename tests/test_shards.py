"""Optimizers that hold a rank's share of the parameters refuse to clip or skip by its norm."""

import pytest
import torch
import torch.distributed as dist
from ranks import ranks_of
from sharded import model_with_gradients
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer

import fused_optim

NEEDS_NORM = [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}]
NEEDS_ALL_GRADIENTS = [*NEEDS_NORM, {"zero_grads": True}]


two = ranks_of(2)


def check_zero():
    model = model_with_gradients()
    for options in NEEDS_ALL_GRADIENTS:
        with pytest.raises(RuntimeError, match="within ZeroRedundancyOptimizer"):
            ZeroRedundancyOptimizer(
                model.parameters(), optimizer_class=fused_optim.AdamW, lr=0.1, **options
            )
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=fused_optim.AdamW, lr=0.1, ema_decay=0.5
    )
    with pytest.raises(RuntimeError, match="within ZeroRedundancyOptimizer"):
        optimizer.optim.max_grad_norm = 1.0
    with pytest.raises(RuntimeError, match="within ZeroRedundancyOptimizer"):
        optimizer.optim.ema_parameters()
    optimizer.step()
    assert optimizer.optim.fallback_reason is None
    unfused = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.1)
    fused_optim.fuse(unfused.optim)
    with pytest.raises(RuntimeError, match="within ZeroRedundancyOptimizer"):
        unfused.optim.max_grad_norm = 1.0

    def closure():  # called from within, but of its own
        fused_optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1, max_grad_norm=1.0)

    unfused.zero_grad()
    unfused.step(closure)
    other = model_with_gradients()
    torch.optim.AdamW(other.parameters(), lr=0.1, foreach=False).step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def check_fsdp1():
    for use_orig_params in (False, True):
        plain = model_with_gradients()
        plain.zero_grad()
        model = FullyShardedDataParallel(
            plain, device_id=torch.device("cpu"), use_orig_params=use_orig_params
        )
        optimizer = fused_optim.AdamW(model.parameters(), lr=0.1)
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.ones(3, 4)).sum().backward()
        for options in NEEDS_NORM:
            optimizer = fused_optim.AdamW(model.parameters(), lr=0.1, **options)
            with pytest.raises(RuntimeError, match="FullyShardedDataParallel.clip_grad_norm_"):
                optimizer.step()
        assert not optimizer.state
        for p, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(p.detach(), value)


@pytest.mark.parametrize("check", [check_zero, check_fsdp1], ids=lambda check: check.__name__)
def test_a_shares_norm_is_refused(two, check):
    two.run(check)


def test_one_rank_has_all(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = model_with_gradients()
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=fused_optim.SGD, lr=0.1, max_grad_norm=1e-3
        )
        optimizer.step()
        assert optimizer.optim.grad_norm > 1e-3
    finally:
        dist.destroy_process_group()
