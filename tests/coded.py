"""Optimizers with moments in 8 bits, for tests."""

import torch
from torch.nn import Parameter
from twins import CODED, same_bits, snapshot

LARGE = (70, 67)  # no multiple of a block


def make(cls, shapes=(LARGE,), dtype=torch.float32, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    return params, cls(params, **{**CODED.get(cls, {}), "state_dtype": torch.int8, **options})


def set_grads(*lists, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    for same in zip(*lists, strict=True):
        grad = torch.randn(same[0].shape, generator=generator)
        for p in same:
            p.grad = torch.empty_like(p).copy_(grad)


def step(optimizer, *lists, times=1, seed=0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i in range(times):
        set_grads(params, *lists, seed=seed + i)
        optimizer.step()
        assert optimizer.fallback_reason is None


def all_bits(optimizer):
    params, states = snapshot(optimizer)
    return params + list(states.values())


def assert_same_bits(a, b):
    assert len(a) == len(b)
    assert all(same_bits(x, y) for x, y in zip(a, b, strict=True))
