"""The CUDA kernels' body, run on the host: every thread of every block, against the CPU engine."""

import itertools
import math

import pytest
import torch
from twins import (
    CASES,
    SCALARS,
    SUPPORTED_ISAS,
    assert_unchanged,
    case_id,
    copies,
    same_bits,
    set_grads,
    snapshot,
)

import fused_optim
import fused_optim._C as _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: Ragged in every way: around a pack of 16 bytes, around a chunk of 8,192 elements, empty.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 100, 1001, 8191, 8192, 8193, 20_001]
LAUNCHES = [(1, 1), (3, 32), (132, 7)]
OFFSETS_AND_LAUNCHES = [(0, (1, 1)), (1, (3, 32)), (0, (132, 7)), (1, (132, 7))]


def make(size, dtype, offset, seed):
    whole = torch.zeros(size + offset, dtype=dtype)
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    whole[offset:] = values.to(dtype)
    return whole[offset:].detach().requires_grad_()


def unaligned(tensor, offset=1):
    """The same values, `offset` elements into memory of their own."""
    whole = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype)
    whole[offset:] = tensor.detach().flatten()
    return whole[offset:].view(tensor.shape)


def kernel_step(optimizer, blocks, threads, grad_scale=None, found_inf=None):
    return _C.step_on_host(
        optimizer._rule,
        optimizer.param_groups,
        optimizer.state,
        grad_scale,
        found_inf,
        optimizer._fused.options,
        blocks,
        threads,
    )


def assert_same(ours, theirs, our_params, their_params):
    for p, q in zip(our_params, their_params, strict=True):
        assert same_bits(p.detach(), q.detach())
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in ours.state[p].items():
            assert same_bits(value, theirs.state[q][key]), key


@pytest.mark.parametrize(("offset", "launch"), OFFSETS_AND_LAUNCHES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_bitwise_the_cpu_engines_result(case, dtype, offset, launch):
    """One result everywhere: sizes, alignment and launch shape don't show."""
    cls, options = case
    params = [make(size, dtype, offset, seed=size) for size in SIZES]
    others = copies(params)
    kernel, cpu = cls(params, **options), cls(others, **options)
    for seed in range(2):
        set_grads(params, others, seed=seed)
        assert kernel_step(kernel, *launch) == 1
        cpu.step()
        assert_same(kernel, cpu, params, others)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_one_unaligned_operand_among_aligned_ones(case, dtype):
    """Each in turn: gradients in views of a bucket, states of a checkpoint, averages."""
    cls, options = case
    asked = {"zero_grads": True, "ema_decay": 0.75}
    params = [make(size, dtype, 0, seed=size) for size in SIZES]
    others = copies(params)
    kernel, cpu = cls(params, **options, **asked), cls(others, **options, **asked)
    set_grads(params, others, seed=0)
    kernel_step(kernel, 3, 32)
    cpu.step()
    keys = [None, *(k for k, v in kernel.state[params[-1]].items() if v.dim() > 0)]
    for seed, key in enumerate(keys, 1):
        set_grads(params, others, seed=seed)
        for p in params:
            if key is None:
                p.grad = unaligned(p.grad)
            else:
                kernel.state[p][key] = unaligned(kernel.state[p][key])
        kernel_step(kernel, 3, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        assert not any(p.grad.any() for p in params)
        for p in params:
            if key is not None:
                kernel.state[p][key] = kernel.state[p][key].clone()


@pytest.mark.parametrize(("dtype", "nan"), [(torch.bfloat16, 0x7FC0), (torch.float16, 0x7E00)])
def test_every_nan_of_a_half_type_is_the_same(dtype, nan):
    """Whatever the sign and payload of the one that it comes from."""
    given = [nan, nan + 1, nan - 0x8000, nan - 0x8000 + 1]
    for isa in (None, *SUPPORTED_ISAS):
        param = torch.zeros(40, dtype=dtype, requires_grad=True)
        param.grad = torch.tensor(given * 10, dtype=torch.int16).view(dtype)
        assert param.grad.isnan().all()
        optimizer = fused_optim.SGD([param], lr=0.5)
        if isa is None:
            kernel_step(optimizer, 2, 3)
        else:
            _C.set_isa(isa)
            optimizer.step()
        assert (param.detach().view(torch.int16) == nan).all()


@pytest.mark.parametrize("count", [1, 2, 585, 3000])
@pytest.mark.parametrize("groups", [1, 40])
def test_many_tensors_and_groups(optimizer_class, count, groups):
    """More tensors than one table holds take more launches, and no tensor is lost."""
    params = [make(1 + i % 13, torch.float32, 0, seed=i) for i in range(count)]
    others = copies(params)

    def split(p):
        parts = [p[i::groups] for i in range(groups)]
        return [{"params": part, "lr": 0.1 / (i + 1)} for i, part in enumerate(parts) if part]

    kernel, cpu = optimizer_class(split(params)), optimizer_class(split(others))
    for seed in range(2):
        set_grads(params, others, seed=seed)
        launches = kernel_step(kernel, 5, 8)
        cpu.step()
    assert_same(kernel, cpu, params, others)
    assert launches == 1 or count > 2
    assert launches > 1 or count < 3000
    assert launches <= 1 + count // 400


def test_each_element_is_visited_exactly_once():
    """Adding 1 at each visit: a skipped element stays 0, one visited twice reads 2."""
    for offset in (0, 1, 3):
        params = [make(size, torch.float32, offset, seed=0) for size in SIZES]
        for p in params:
            p.data.zero_()
            p.grad = torch.ones_like(p)
        sgd = fused_optim.SGD(params, lr=1.0, maximize=True)
        for launch in LAUNCHES:
            kernel_step(sgd, *launch)
        assert all((p == len(LAUNCHES)).all() for p in params)


def real_and_complex(*shape):
    numel = math.prod(shape)
    return [
        torch.nn.Parameter(torch.linspace(-1, 1, numel, dtype=dtype).view(shape))
        for dtype in (torch.float32, torch.complex64)
    ]


def set_strided_grads(*lists, seed):
    """As set_grads, in another memory order than the parameters'."""
    set_grads(*lists, seed=seed)
    for p in itertools.chain(*lists):
        p.grad = p.grad.permute(2, 0, 1).contiguous().permute(1, 2, 0)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_strided_operands_and_complex(case):
    cls, options = case
    params, others = (real_and_complex(4, 5, 6) for _ in range(2))
    kernel, cpu = cls(params, **options), cls(others, **options)
    for seed in range(3):
        set_strided_grads(params, others, seed=seed)
        kernel_step(kernel, 2, 16)
        cpu.step()
    assert_same(kernel, cpu, params, others)


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0, float("nan")])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_amp_is_read_by_the_kernel(case, found_inf):
    cls, options = case
    params = [make(50, torch.float32, 0, seed=1), make(9, torch.float32, 1, seed=2)]
    others = copies(params)
    kernel, cpu = cls(params, **options), cls(others, **options)
    set_grads(params, others, seed=0)
    kernel_step(kernel, 2, 4)
    cpu.step()
    set_grads(params, others, seed=1)
    scale = torch.tensor(3.0)
    kernel_step(kernel, 2, 4, grad_scale=scale, found_inf=torch.tensor(found_inf))
    cpu.grad_scale, cpu.found_inf = scale, torch.tensor(found_inf)
    cpu.step()
    assert_same(kernel, cpu, params, others)


#: Clipping with skipping, and the rest with nothing to decide.
OPTIONS = [
    {"max_grad_norm": 0.5, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.75},
    {"zero_grads": True},
    {"ema_decay": 0.25},
    {"max_grad_norm": 2.0},
]


@pytest.mark.parametrize("asked", OPTIONS, ids=lambda o: "+".join(o))
@pytest.mark.parametrize(("offset", "launch"), OFFSETS_AND_LAUNCHES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_surrounds_a_step_is_bitwise_the_cpu_engines(
    optimizer_class, dtype, offset, launch, asked
):
    params = [make(size, dtype, offset, seed=size) for size in SIZES]
    others = copies(params)
    kernel, cpu = optimizer_class(params, **asked), optimizer_class(others, **asked)
    for seed in range(4):
        set_grads(params, others, seed=seed)
        if seed == 2 and "skip_nonfinite" in asked:
            for p in (params[-1], others[-1]):
                p.grad[12_345] = float("nan")
        grads = [p.grad for p in params]
        kernel_step(kernel, *launch, grad_scale=torch.tensor(3.0), found_inf=torch.tensor(0.0))
        cpu.grad_scale = torch.tensor(3.0)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        assert all(p.grad is g for p, g in zip(params, grads, strict=True))
        assert all(same_bits(p.grad, q.grad) for p, q in zip(params, others, strict=True))
        assert params[-1].grad.any() == ("zero_grads" not in asked)


@pytest.mark.parametrize("asked", OPTIONS, ids=lambda o: "+".join(o))
def test_what_surrounds_a_step_of_strided_operands(optimizer_class, asked):
    params, others = (real_and_complex(40, 5, 6) for _ in range(2))
    kernel, cpu = optimizer_class(params, **asked), optimizer_class(others, **asked)
    for seed in range(3):
        set_strided_grads(params, others, seed=seed)
        kernel_step(kernel, 2, 16)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        assert all(same_bits(p.grad, q.grad) for p, q in zip(params, others, strict=True))
        for optimizer, p in ((kernel, params[0]), (cpu, others[0])):
            if "ema" in optimizer.state[p]:
                average = optimizer.state[p]["ema"]
                optimizer.state[p]["ema"] = average.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def test_a_skipped_step_zeroes_gradients_and_nothing_else(optimizer_class):
    asked = {"skip_nonfinite": True, "zero_grads": True}
    for found_inf, value in ((1.0, 0.0), (0.0, float("inf"))):
        params = [make(size, torch.float32, size % 2, seed=size) for size in SIZES]
        optimizer = optimizer_class(params, **asked)
        set_grads(params, seed=0)
        kernel_step(optimizer, 3, 32)
        before = snapshot(optimizer)
        set_grads(params, seed=1)
        params[-1].grad += value
        kernel_step(optimizer, 3, 32, found_inf=torch.tensor(found_inf))
        assert_unchanged(optimizer, before)
        assert not any(p.grad.any() for p in params)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_scalar_states_of_any_dtype(optimizer_class, dtype):
    """As checkpoints bring them that torch has loaded before: it gives them the parameter's."""
    params = [make(50, torch.float32, 0, seed=1), make(9, torch.float32, 1, seed=2)]
    others = copies(params)
    kernel, cpu = optimizer_class(params), optimizer_class(others)
    for seed in range(3):
        set_grads(params, others, seed=seed)
        kernel_step(kernel, 2, 4)
        cpu.step()
        for state in (*kernel.state.values(), *cpu.state.values()):
            for key in state.keys() & SCALARS[optimizer_class] - {"step"}:
                state[key] = state[key].to(dtype)
    assert_same(kernel, cpu, params, others)


def test_step_counters_are_advanced_by_the_kernel(optimizer_class):
    params = [make(size, torch.float32, 0, seed=size) for size in (0, 5, 70_001)]
    optimizer = optimizer_class(params)
    for expected in (1.0, 2.0, 3.0):
        set_grads(params, seed=0)
        kernel_step(optimizer, 7, 3)
        for p in params:
            if "step" in optimizer.state[p]:
                assert optimizer.state[p]["step"].item() == expected
