"""Bitwise one result: any instruction set, thread count, alignment and grouping."""

import functools

import pytest
import torch
from torch.nn import Parameter
from twins import CASES, SUPPORTED_ISAS, case_id, same_bits

import fused_optim
import fused_optim._C as _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: Around every vector width, and one tensor large enough for two threads.
SIZES = [1, 3, 8, 15, 16, 17, 31, 33, 64, 100, 140_001]


@functools.cache  # most of the time would go into the numbers; nobody writes to them
def values(size, dtype, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(case, dtype, *, offset=0, one_by_one=False, steps=3):
    """Steps from the same start; returns all parameters and states."""
    cls, options = case
    params = []
    for size in SIZES:
        whole = torch.zeros(size + offset, dtype=dtype)
        whole[offset:] = values(size, dtype, seed=size)
        params.append(whole[offset:].detach().requires_grad_())
    groups = [{"params": [p]} for p in params] if one_by_one else [{"params": params}]
    optimizers = [cls([group], **options) for group in groups] if one_by_one else None
    optimizers = optimizers or [cls(groups, **options)]
    for seed in range(steps):
        for p in params:
            p.grad = values(p.numel(), dtype, 1000 + seed)
        for optimizer in optimizers:
            optimizer.step()
            assert optimizer.fallback_reason is None
    states = [v for o in optimizers for s in o.state.values() for v in s.values()]
    return [p.detach().clone() for p in params] + states


def assert_bitwise(a, b):
    assert len(a) == len(b)
    assert all(same_bits(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_one_result(case, dtype):
    _C.set_isa("baseline")
    torch.set_num_threads(1)
    reference = run(case, dtype)
    for isa in SUPPORTED_ISAS:
        _C.set_isa(isa)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_bitwise(run(case, dtype), reference)
        assert_bitwise(run(case, dtype, offset=1), reference)
        assert_bitwise(run(case, dtype, one_by_one=True), reference)


def test_more_than_one_instruction_set_was_compared():
    """On x86 hardware of the last decade the comparison above is not of one with itself."""
    if len(_C.built_isas()) == 1:
        pytest.skip("this architecture has one instruction set")
    assert len(SUPPORTED_ISAS) > 1


@pytest.mark.parametrize("isa", SUPPORTED_ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_and_sentinels(optimizer_class, dtype, isa):
    """Sizes 0 to twice the widest vector, at each misalignment: the elements around the view
    keep their bits, the view gets the same bits as an aligned tensor."""
    _C.set_isa(isa)
    sentinel = 77.0
    widest = 2 * 64 // torch.empty(0, dtype=dtype).element_size()
    for size in range(widest + 1):
        for offset in (1, 2, 3, 7):
            buffers = [torch.full((size + offset + 40,), sentinel, dtype=dtype) for _ in range(2)]
            view, grad = (b[offset : offset + size] for b in buffers)
            view.copy_(values(size, dtype, seed=size))
            grad.copy_(values(size, dtype, seed=size + 1))
            aligned = view.clone()
            view.grad, aligned.grad = grad, grad.clone()
            for param in (view, aligned):
                optimizer_class([param]).step()
            assert same_bits(view, aligned)
            for buffer in buffers:
                assert (buffer[:offset] == sentinel).all()
                assert (buffer[offset + size :] == sentinel).all()


def test_float16_and_bfloat16_round_as_torch_does():
    """Every half-precision value survives a step of lr 0, and float results round to nearest
    even: SGD with lr 1 from zero stores exactly the negated gradient's rounding."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        finite = every[every.isfinite()].clone()
        param = finite.clone().requires_grad_()
        param.grad = torch.zeros_like(finite)
        sgd = next(cls for cls, _ in CASES if cls.__name__ == "SGD")
        for isa in SUPPORTED_ISAS:
            _C.set_isa(isa)
            sgd([param], lr=0.0).step()
            assert torch.equal(param.detach(), finite)
        # param - lr * grad in float32, then one rounding: what torch's conversion gives.
        grad = finite.flip(0).clone()
        for lr in (0.37, 1e-3, 3e4):
            expected = (finite.float() - torch.tensor(lr) * grad.float()).to(dtype)
            for isa in SUPPORTED_ISAS:
                _C.set_isa(isa)
                param = finite.clone().requires_grad_()
                param.grad = grad
                sgd([param], lr=lr).step()
                assert same_bits(param.detach(), expected)


def test_the_callers_floating_point_mode_holds_for_all_threads(optimizer_class):
    """torch.set_flush_denormal sets a register of the calling thread alone, and which thread takes
    which range is up to chance."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush subnormals")
    try:
        params = [Parameter(torch.full((1 << 18,), 1e-39)) for _ in range(2)]
        for p in params:
            p.grad = torch.full_like(p, 1e-39)
        torch.set_num_threads(1)
        one = optimizer_class(params[:1], lr=1e-3)
        one.step()
        torch.set_num_threads(4)
        for _ in range(20):
            params[1].data.fill_(1e-39)
            several = optimizer_class(params[1:], lr=1e-3)
            several.step()
            assert same_bits(params[1].detach(), params[0].detach())
            for name, state in one.state[params[0]].items():
                assert same_bits(several.state[params[1]][name], state)
        # And is put back: an operation of torch's on all threads still has subnormals.
        torch.set_flush_denormal(False)
        halved = torch.full((1 << 20,), 1e-38) * 0.1
        assert torch.equal(halved, torch.full((1 << 20,), 1e-38 * 0.1))
    finally:
        torch.set_flush_denormal(False)


def test_averages_of_resting_parameters_are_in_the_callers_mode_too():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush subnormals")
    try:
        torch.set_flush_denormal(False)
        torch.set_num_threads(4)
        (torch.full((1 << 20,), 1.0) * 2).sum()  # torch's threads begin, in the mode of now
        params = [Parameter(torch.full((1 << 20,), 1.2e-38)), Parameter(torch.zeros(1))]
        optimizer = fused_optim.SGD(params, lr=0.0, ema_decay=0.5)
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.state[params[0]]["ema"].fill_(1.3e-38)
        params[0].grad = None
        torch.set_flush_denormal(True)
        optimizer.step()
        assert len(optimizer.state[params[0]]["ema"].unique()) == 1
    finally:
        torch.set_flush_denormal(False)
