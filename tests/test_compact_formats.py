"""Every code of every compact format: exact, idempotent, within bounds, and unbiased."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from twins import SUPPORTED_ISAS, same_bits

import fused_optim
import fused_optim._C as _C

BLOCK = 128
SIGNED, UNSIGNED = True, False
#: From where scales end to the largest float.
MAGNITUDES = [1e-45, 1e-38, 1e-34, 1e-30, 1e-12, 3e-3, 1.0, 1e4, 1e30, 3.3e38]


def decoded(values, is_signed):
    return _C.decode(*_C.encode(values, is_signed))


def blocks(magnitude, is_signed, count=64):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, BLOCK, generator=generator) * 0.2
    spread = 10 ** (-6 * torch.rand(count, BLOCK, generator=generator))
    values = (values * spread).clamp(-1, 1) * magnitude
    return (values if is_signed else values.abs()).flatten()


@pytest.mark.parametrize("scale", [2.0**-126, 3e-5, 1.0, 1.25e10, 2.0**110])
def test_every_code_of_the_signed_ones(scale):
    codes = torch.arange(-127, 128).to(torch.int8)
    # Of few bits, as scales are.
    scale = float(np.float32(scale).view(np.uint32) & 0xFFFFC000)
    scale = float(np.uint32(scale).view(np.float32))
    values = _C.decode(codes, torch.full((2,), scale))
    exact = codes.double() * codes.double().abs() * scale
    assert torch.equal(values.double(), exact)
    for block in (values[:BLOCK], torch.cat([values[BLOCK:], values[:1]])):
        again, scales = _C.encode(block, SIGNED)
        assert torch.equal(_C.decode(again, scales), block)
        assert scales.item() == scale


@pytest.mark.parametrize("exponent", [-111, -64, 0, 60, 127])
def test_every_code_of_the_unsigned_ones(exponent):
    codes = torch.arange(256).to(torch.uint8)
    values = _C.decode(codes, torch.full((2,), 2.0**exponent))
    mantissa, binade = 1 + (codes % 16).double() / 16, (codes // 16).double()
    exact = torch.where(codes == 0, 0.0, mantissa * 2.0 ** (binade - 15 + exponent))
    assert torch.equal(values.double(), exact)
    for block in (values[:BLOCK], values[BLOCK:], values[5:77]):
        assert torch.equal(decoded(block, UNSIGNED), block)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("is_signed", [SIGNED, UNSIGNED])
def test_what_was_decoded_is_encoded_to_the_same_values(is_signed, magnitude):
    once = decoded(blocks(magnitude, is_signed), is_signed)
    assert same_bits(decoded(once, is_signed), once)


def test_the_largest_of_a_block_has_its_largest_code():
    """Whatever is rounded on the way: the next scale is made of it. 17767.102 times the reciprocal
    of its scale is a little less than 127 squared."""
    rare = [17767.102, 16129.0, 1 / 3, 5e-39, 3e38]
    largest = torch.cat([torch.tensor(rare), torch.rand(20_000) + 0.5])
    blocks = torch.zeros(len(largest), BLOCK)
    blocks[:, 7] = largest
    p = Parameter(torch.zeros(blocks.shape))
    p.grad = blocks
    optimizer = fused_optim.Adam([p], betas=(0.0, 0.0), state_dtype={"exp_avg": torch.int8})
    optimizer.step()
    assert bool((optimizer.state[p]["exp_avg"][:, 7] == 127)[largest > 1e-33].all())
    codes, _ = _C.encode(blocks.flatten(), SIGNED)
    assert bool((codes.view_as(blocks)[:, 7] == 127)[largest > 1e-33].all())


@pytest.mark.parametrize("magnitude", [x for x in MAGNITUDES if x > 1e-33])
def test_errors_of_the_signed_ones(magnitude):
    """A step between codes is twice the root of the value over the block's largest, over 127."""
    values = blocks(magnitude, SIGNED).double()
    largest = values.view(-1, BLOCK).abs().amax(1, keepdim=True).expand(-1, BLOCK).flatten()
    error = (decoded(values.float(), SIGNED).double() - values).abs()
    half_a_step = largest / 127 * (values.abs() / largest).sqrt() + largest / 127**2 / 4
    assert bool((error <= half_a_step * (1 + 2**-8) + largest * 2**-9).all())


@pytest.mark.parametrize("magnitude", [x for x in MAGNITUDES if x > 1e-33])
def test_errors_of_the_unsigned_ones(magnitude):
    values = blocks(magnitude, UNSIGNED)
    largest = values.view(-1, BLOCK).amax(1, keepdim=True).expand(-1, BLOCK).flatten()
    result = decoded(values, UNSIGNED)
    is_in_range = values >= largest * 2.0**-14
    error = (result.double() / values.double() - 1).abs()
    assert bool((error[is_in_range & (values > 0)] <= 2**-5).all())
    assert torch.equal(result == 0, values == 0)


@pytest.mark.parametrize("is_signed", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_spoils_its_block_alone(is_signed, bad):
    values = blocks(1.0, is_signed, count=3)
    values[BLOCK + 5] = bad
    result = decoded(values, is_signed).view(3, BLOCK)
    assert bool(result[[0, 2]].isfinite().all())
    if bad != bad or bad < 0 or is_signed:
        assert bool(result[1].isnan().all())
    else:  # an infinite second moment is a very large one: its parameter stands still
        assert result[1, 5] > 3e38 and bool((result[1] > 0).all())


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-45, float("inf"), float("nan"), 3e38])
def test_scales_that_nobody_wrote_are_numbers_like_any(scale):
    """Whatever a checkpoint holds, decoding is arithmetic."""
    codes = torch.arange(256).to(torch.uint8)
    for some in (codes, codes.view(torch.int8)):
        assert _C.decode(some, torch.full((2,), scale)).shape == codes.shape


def test_bad_arguments():
    codes, scales = _C.encode(torch.ones(300), SIGNED)
    for bad in (
        (codes.float(), scales),
        (codes, scales.double()),
        (codes, scales[:2]),
        (codes[::2], scales),
        (codes, torch.ones(6)[::2]),
    ):
        with pytest.raises(ValueError, match="codes are|scales are"):
            _C.decode(*bad)
    with pytest.raises(ValueError, match="bfloat16 parameter"):
        _C.joined(torch.ones(3), torch.ones(3, dtype=torch.int16))
    with pytest.raises(ValueError, match="bfloat16 parameter"):
        _C.joined(torch.ones(3).bfloat16(), torch.ones(2, dtype=torch.int16))


def all_bfloat16():
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_masters_are_within_half_a_unit_of_every_parameter(dtype):
    """Whatever the remainder: not a zero, a NaN or an infinity becomes another number."""
    params = all_bfloat16()
    info = torch.iinfo(dtype)
    for rest in (info.min, -1, 0, 1, info.max):
        joined = _C.joined(params, torch.full_like(params, rest, dtype=dtype))
        assert torch.equal(joined.isnan(), params.isnan())
        is_finite = joined.isfinite() & params.isfinite()
        unit = joined.abs().bfloat16().float() * 2**-7 + 2.0**-133
        assert bool(((joined - params.float()).abs() <= unit)[is_finite].all())
        assert torch.equal(params == 0, params.float() == 0)
        assert bool((joined[params == 0].abs() < 1e-40).all())


def stepped_once(param, grad, **options):
    p = Parameter(param.clone())
    p.grad = grad
    optimizer = fused_optim.SGD([p], lr=1.0, **options)
    optimizer.step()
    assert optimizer.fallback_reason is None
    return p, optimizer


@pytest.mark.parametrize("isa", SUPPORTED_ISAS)
def test_splitting_keeps_every_bit(isa):
    """-0 + x is x: all kinds of floats, those that round up to another exponent or to infinity."""
    _C.set_isa(isa)
    bits = torch.randint(-(2**31), 2**31, (40_000,), generator=torch.Generator().manual_seed(1))
    edges = [0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x3F7FFFFF, 0x00000001, 0x00007FFF, 0x00008000]
    edges += [0x7F800000, 0, 0x00800000, 0x3F808000, 0x3F818000]
    edges = torch.tensor(edges)
    values = torch.cat([edges, edges - 2**31, bits]).to(torch.int32).view(torch.float32)
    values = torch.where(values.isnan(), torch.tensor(1.0), values)
    zero = torch.full_like(values, -0.0, dtype=torch.bfloat16)
    zero.grad_dtype = torch.float32
    p = Parameter(zero)
    p.grad_dtype = torch.float32
    p.grad = -values
    optimizer = fused_optim.SGD([p], lr=1.0, master_bits=32)
    optimizer.step()
    assert optimizer.fallback_reason is None
    assert torch.equal(next(optimizer.master_parameters()), values)
    assert torch.equal(p.detach().isinf(), values.bfloat16().isinf())


STEPS = 400


def mean_of_steps(make, read):
    """The mean of what `read` gives after each of many first steps with different seeds."""
    total = 0
    for seed in range(STEPS):
        total = total + read(make(seed)).double()
    return total / STEPS


def assert_unbiased(mean, exact, unit):
    """All elements' means together, and each alone, within what chance gives: of a number that is
    one of two a `unit` apart, the deviation is at most half of it."""
    errors = (mean - exact.double()) / (unit / 2) * STEPS**0.5
    assert errors.abs().max() <= 5.5, "one element of a few thousand"
    assert errors.mean().abs() * errors.numel() ** 0.5 <= 4


def test_stochastic_bfloat16_is_unbiased():
    grad = torch.rand(2000, generator=torch.Generator().manual_seed(2)) + 1

    def make(seed):
        p = Parameter(torch.zeros(2000).bfloat16())
        p.grad_dtype = torch.float32
        p.grad = -grad
        options = {"stochastic_rounding": True, "rounding_seed": seed}
        fused_optim.SGD([p], lr=1.0, **options).step()
        return p.detach()

    assert_unbiased(mean_of_steps(make, lambda p: p), grad, 2.0**-7)


def test_stochastic_masters_of_24_bits_are_unbiased():
    grad = torch.rand(2000, generator=torch.Generator().manual_seed(2)) + 1

    def make(seed):
        p = Parameter(torch.zeros(2000).bfloat16())
        p.grad_dtype = torch.float32
        p.grad = -grad
        options = {"stochastic_rounding": True, "rounding_seed": seed, "master_bits": 24}
        optimizer = fused_optim.SGD([p], lr=1.0, **options)
        optimizer.step()
        return next(optimizer.master_parameters())

    assert_unbiased(mean_of_steps(make, lambda p: p), grad, 2.0**-15)


def test_codes_are_unbiased():
    """The first step of Adam without decay makes moments of the gradient and of its square."""
    grad = torch.randn(4096, generator=torch.Generator().manual_seed(3)).clamp(-2, 2)
    grad[::BLOCK] = 2.5  # the largest of each block, which is rounded to nearest

    def make(seed):
        p = Parameter(torch.zeros(4096))
        p.grad = grad
        options = {"state_dtype": torch.int8, "rounding_seed": seed}
        optimizer = fused_optim.Adam([p], betas=(0.0, 0.0), **options)
        optimizer.step()
        return optimizer.state_dict()["state"][0]

    first = mean_of_steps(make, lambda state: state["exp_avg"])
    largest = 2.5
    unit = 2 * largest / 127 * (grad.abs() / largest).sqrt() + largest / 127**2
    keep = torch.arange(4096) % BLOCK != 0
    assert_unbiased(first[keep], grad[keep], unit[keep])
    second = mean_of_steps(make, lambda state: state["exp_avg_sq"])
    exact = grad.double() ** 2
    unit = 2.0 ** (exact.log2().floor() - 4)
    keep &= exact > largest**2 * 2.0**-13
    assert_unbiased(second[keep], exact[keep], unit[keep])
