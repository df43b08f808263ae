"""Masters, 8-bit moments and stochastic rounding in the CUDA kernels' body, run on the host: the
CPU engine's bits."""

import pytest
import torch
from test_cuda_kernels import assert_same, kernel_step, make, unaligned
from twins import FUSED, all_options, copies, same_bits, set_grads, snapshot

import fused_optim

F32, BF16, F16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
#: Around a block of 128, the fewest elements in codes, a chunk of 8,192.
SIZES = [0, 1, 127, 128, 129, 4096, 4097, 8191, 8192, 8193, 20_001]
LAUNCHES = [(0, (1, 32)), (1, (3, 64)), (0, (2, 96))]
#: (the parameter's dtype, options).
KINDS = {
    "master24-int8-stochastic": (
        BF16,
        {"master_bits": 24, "state_dtype": INT8, "stochastic_rounding": True},
    ),
    "master32-bfloat16-stochastic": (
        BF16,
        {"master_bits": 32, "state_dtype": BF16, "stochastic_rounding": True},
    ),
    "master24": (BF16, {"master_bits": 24}),
    "stochastic": (BF16, {"stochastic_rounding": True}),
    "float32-int8": (F32, {"state_dtype": INT8}),
    "float16-int8": (F16, {"state_dtype": INT8}),
}
#: What surrounds a step, with a decision to read.
AROUND = {"zero_grads": True, "ema_decay": 0.75, "max_grad_norm": 0.5, "skip_nonfinite": True}
ADAMW = {"master_bits": 24, "state_dtype": INT8, "stochastic_rounding": True}


def options_for(cls, asked):
    """All states of the class that can be so, or None."""
    options = {**all_options(cls), **asked}
    if asked.get("state_dtype") == INT8:
        if not has_codes(cls):
            return None
        options = {k: v for k, v in options.items() if k not in ("amsgrad", "centered")}
    return options


def has_codes(cls):
    try:
        cls([torch.zeros(1)], state_dtype=INT8)
    except ValueError:
        return False
    return True


CASES = [
    pytest.param(cls, dtype, options, id=f"{cls.__name__}-{kind}")
    for cls in FUSED
    for kind, (dtype, asked) in KINDS.items()
    if (options := options_for(cls, asked)) is not None
]


def both(cls, params, options):
    others = copies(params)
    return cls(params, **options), cls(others, **options), others


@pytest.mark.parametrize(("offset", "launch"), LAUNCHES, ids=str)
@pytest.mark.parametrize(("cls", "dtype", "options"), CASES)
def test_bitwise_the_cpu_engines_result(cls, dtype, options, offset, launch):
    params = [make(size, dtype, offset, seed=size) for size in SIZES]
    kernel, cpu, others = both(cls, params, {**options, **AROUND})
    cpu.grad_scale = torch.tensor(3.0)
    for seed in range(3):
        set_grads(params, others, seed=seed)
        if seed == 1:
            for p in (params[-1], others[-1]):
                p.grad[12_345] = float("inf")
        kernel_step(kernel, *launch, grad_scale=torch.tensor(3.0), found_inf=torch.tensor(0.0))
        cpu.step()
        assert cpu.fallback_reason is None
        assert_same(kernel, cpu, params, others)
        assert not any(p.grad.any() for p in params)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_operands(kind):
    """A parameter of any memory order, with gradient and average in others."""
    dtype, asked = KINDS[kind]
    values = make(5200, dtype, 0, seed=1).detach()
    params = [values.view(130, 40).t().requires_grad_(), values.clone().view(40, 130)]
    params[1].requires_grad_()
    kernel, cpu, others = both(fused_optim.AdamW, params, {**asked, "ema_decay": 0.75})
    for seed in range(3):
        set_grads(params, others, seed=seed)
        for p in (*params, *others):
            p.grad = p.grad.t().contiguous().t() if p.is_contiguous() else p.grad.contiguous()
            assert p.grad.stride() != p.stride()
        kernel_step(kernel, 2, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)


@pytest.mark.parametrize("kind", KINDS)
def test_one_unaligned_operand_among_aligned_ones(kind):
    dtype, asked = KINDS[kind]
    params = [make(4500, dtype, 0, seed=3)]
    kernel, cpu, others = both(fused_optim.AdamW, params, {**asked, "ema_decay": 0.75})
    set_grads(params, others, seed=0)
    kernel_step(kernel, 2, 32)
    cpu.step()
    state = kernel.state[params[0]]
    for seed, key in enumerate([None, *(k for k, v in state.items() if v.dim() > 0)], 1):
        set_grads(params, others, seed=seed)
        if key is None:
            params[0].grad = unaligned(params[0].grad)
        else:
            state[key] = unaligned(state[key])
        kernel_step(kernel, 2, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        if key is not None:
            state[key] = state[key].clone()


def test_three_states():
    """The one that remembers the largest is in float32, beside codes."""
    params = [make(9000, BF16, offset, seed=offset) for offset in (0, 1)]
    options = {"amsgrad": True, "master_bits": 32, "state_dtype": {"exp_avg": INT8}}
    kernel, cpu, others = both(fused_optim.AdamW, params, {**options, "ema_decay": 0.75})
    for seed in range(3):
        set_grads(params, others, seed=seed)
        kernel_step(kernel, 2, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_blocks_without_finite_numbers(value):
    """Become NaN, and no other block does: their codes are the same bits, too."""
    params = [make(5000, BF16, offset, seed=offset) for offset in (0, 1)]
    kernel, cpu, others = both(fused_optim.AdamW, params, ADAMW)
    for seed in range(3):
        set_grads(params, others, seed=seed)
        for p in (*params, *others) if seed == 1 else ():
            p.grad[1000] = value
        kernel_step(kernel, 2, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)
    assert params[0][:800].isfinite().all() and params[0][1200:].isfinite().all()


@pytest.mark.parametrize("cls", [fused_optim.SGD, fused_optim.Lion])
def test_steps_of_rules_without_any_are_counted_by_the_kernel(cls):
    """Of empty tensors, too; not where the step is skipped, or nothing is random."""
    params = [make(size, BF16, 0, seed=size) for size in (0, 5, 9000)]
    params.append(make(5000, F32, 0, seed=0))
    momentum = {"momentum": 0.9} if cls is fused_optim.SGD else {}
    kernel, cpu, others = both(cls, params, {**ADAMW, **momentum})
    for expected in (1.0, 2.0):
        set_grads(params, others, seed=0)
        launches = kernel_step(kernel, 7, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        assert all(kernel.state[p]["step"].item() == expected for p in params)
    assert launches == 1
    before = snapshot(kernel)
    kernel_step(kernel, 7, 32, found_inf=torch.tensor(1.0))
    after = snapshot(kernel)
    assert all(same_bits(value, after[1][key]) for key, value in before[1].items())


@pytest.mark.parametrize("cls", [fused_optim.SGD, fused_optim.Lion])
def test_steps_that_float32_does_not_count_any_more(cls):
    """They are counted from the beginning: a count that stood still would round all alike."""
    params = [make(5000, BF16, 0, seed=0)]
    momentum = {"momentum": 0.9} if cls is fused_optim.SGD else {}
    kernel, cpu, others = both(cls, params, {"stochastic_rounding": True, **momentum})
    values, counts, found = params[0].detach().clone(), [], []
    for expected in (1, 2**24, 1, 2):
        for optimizer, p in ((kernel, params[0]), (cpu, others[0])):
            if expected == 2**24:
                optimizer.state[p]["step"].fill_(2**24 - 1)
            p.data.copy_(values)
            p.grad = torch.full_like(p, 1e-3)
            for name, state in optimizer.state[p].items():
                if name != "step":
                    state.zero_()
        kernel_step(kernel, 7, 32)
        cpu.step()
        assert_same(kernel, cpu, params, others)
        counts.append(cpu.state[others[0]]["step"].item())
        found.append(others[0].detach().clone())
    assert counts == [1, 2**24, 1, 2]
    assert not torch.equal(found[1], found[2]) and not torch.equal(found[2], found[3])


def test_a_launch_for_compact_tensors_and_one_for_others():
    """And as many as it takes for all that are there."""
    params = [make(1 + i % 200, (BF16, F32)[i % 2], 0, seed=i) for i in range(800)]
    kernel, cpu, others = both(fused_optim.AdamW, params, ADAMW)
    set_grads(params, others, seed=0)
    launches = kernel_step(kernel, 5, 32)
    cpu.step()
    assert_same(kernel, cpu, params, others)
    assert launches == 3  # two, and one of float32 alone
    set_grads(params[:2], others[:2], seed=1)
    for p in (*params[2:], *others[2:]):
        p.grad = None
    assert kernel_step(kernel, 5, 32) == 2


def test_threads_come_in_warps():
    params = [make(5, BF16, 0, seed=0)]
    optimizer = fused_optim.AdamW(params, master_bits=24)
    set_grads(params, seed=0)
    with pytest.raises(ValueError, match="warps"):
        kernel_step(optimizer, 1, 7)
