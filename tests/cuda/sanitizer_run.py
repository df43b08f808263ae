"""A short run of every fused optimizer on the GPU, for compute-sanitizer to watch:

compute-sanitizer --tool memcheck python tests/cuda/sanitizer_run.py
"""

import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from twins import CASES, make_params, set_grads

import fused_optim

SHAPES = [(), (0,), (3,), (17, 5), (8193,), (50_001,)]


COMPACT = {"master_bits": 24, "state_dtype": torch.int8, "stochastic_rounding": True}


def step_compact(cls, options):
    """Whole blocks and a last one, aligned, unaligned and strided."""
    params = make_params([(), (0,), (17, 5), (100, 50), (8193,), (50_001,)], torch.bfloat16)
    optimizer = cls(params, **options, **COMPACT, ema_decay=0.75, zero_grads=True)
    for seed in range(3):
        set_grads(params, seed=seed)
        if seed == 2:
            params[3].grad = params[3].grad.t().contiguous().t()
            params[4].grad = torch.empty(8194, dtype=torch.bfloat16)[1:].copy_(params[4].grad)
        optimizer.step()
    assert optimizer.fallback_reason is None, optimizer.fallback_reason


def main():
    torch.set_default_device("cuda")
    step_compact(fused_optim.SGD, {"momentum": 0.9})
    step_compact(fused_optim.AdamW, {})
    for cls, options in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            params = make_params(SHAPES, dtype)
            unaligned = torch.empty(1001, dtype=dtype)
            unaligned.copy_(make_params([(1001,)], dtype)[0].detach())
            params.append(unaligned[1:].detach().requires_grad_())
            optimizer = cls(params, **options)
            for seed in range(2):
                set_grads(params, seed=seed)
                params[3].grad = params[3].grad.t().contiguous().t()
                optimizer.grad_scale = torch.tensor(2.0)
                optimizer.found_inf = torch.tensor(float(seed))
                optimizer.step()
            fused_optim.clip_grad_norm_(params, 1.0)
            assert optimizer.fallback_reason is None, optimizer.fallback_reason
    torch.cuda.synchronize()
    print(f"{len(CASES)} option sets stepped and clipped")


if __name__ == "__main__":
    main()
