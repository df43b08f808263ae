"""What few bits do over many steps: moments that follow their gradients, parameters that arrive."""

import pytest
import torch
from torch.nn import Parameter
from twins import CODED, TORCH

import fused_optim
import fused_optim._C as _C

pytestmark = pytest.mark.usefixtures("one_thread")

#: Elements; steps with gradients of one size, and then with a tenth of it.
SIZE, BEFORE, AFTER = 4096, 1500, 500

DECAYS = {
    fused_optim.Adam: lambda decay: {"betas": (0.9, decay)},
    fused_optim.AdamW: lambda decay: {"betas": (0.9, decay)},
    fused_optim.NAdam: lambda decay: {"betas": (0.9, decay)},
    fused_optim.RAdam: lambda decay: {"betas": (0.9, decay)},
    fused_optim.Adamax: lambda decay: {"betas": (0.9, decay)},
    fused_optim.RMSprop: lambda decay: {"alpha": decay, "momentum": 0.9},
    fused_optim.Adagrad: lambda decay: {},
    fused_optim.SGD: lambda decay: {"momentum": 0.9},
    fused_optim.Lion: lambda decay: {"betas": (0.9, 0.99)},
}


def run(cls, decay, **kept):
    """Moments as they are kept and exactly, by name. The parameters don't move."""
    options = {"lr": 0.0, **IN_BFLOAT16[cls](decay)}
    p, q = Parameter(torch.zeros(SIZE)), Parameter(torch.zeros(SIZE, dtype=torch.float64))
    ours = cls([p], **options, **kept)
    exact = TORCH[cls]([q], foreach=cls is not fused_optim.Lion, **options)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(SIZE, generator=generator).exp()
    for i in range(BEFORE + AFTER):
        grad = torch.randn(SIZE, generator=generator) * sizes * (1.0 if i < BEFORE else 0.1)
        p.grad, q.grad = grad, grad.double()
        ours.step()
        exact.step()
    assert ours.fallback_reason is None
    saved = ours.state_dict()["state"][0]
    are_signed = dict(_C.moments(cls._rule))
    return {
        (name, are_signed.get(name, False)): (saved[name].double(), value)
        for name, value in exact.state[q].items()
        if value.shape == q.shape
    }


def assert_follows(result, is_signed, rms):
    kept, exact = result
    if is_signed:
        # As large as exactly, and no nearer to zero: what is lost is noise.
        assert abs((kept * exact).sum() / (exact * exact).sum() - 1) <= 0.03
        assert ((kept - exact) ** 2).sum() <= 0.02 * (exact * exact).sum()
        return
    ratio = kept / exact
    assert abs(ratio.median() - 1) <= 0.03
    # What Adam divides by is its root.
    assert ((1 / ratio.sqrt() - 1) ** 2).mean().sqrt() <= rms


#: A square that feeds itself back, so that errors in it grow: in bfloat16, not in 8 bits.
IN_BFLOAT16 = {**DECAYS, fused_optim.Adadelta: lambda decay: {"rho": decay}}
assert DECAYS.keys() == CODED.keys()


@pytest.mark.parametrize("decay", [0.95, 0.999])
@pytest.mark.parametrize("cls", DECAYS, ids=lambda cls: cls.__name__)
def test_moments_in_8_bits_follow(cls, decay):
    for (_, is_signed), result in run(cls, decay, state_dtype=torch.int8).items():
        assert_follows(result, is_signed, rms=0.12)


@pytest.mark.parametrize("decay", [0.95, 0.999])
@pytest.mark.parametrize("cls", IN_BFLOAT16, ids=lambda cls: cls.__name__)
def test_moments_in_bfloat16_follow(cls, decay):
    options = {"state_dtype": torch.bfloat16, "stochastic_rounding": True}
    for (_, is_signed), result in run(cls, decay, **options).items():
        assert_follows(result, is_signed, rms=0.06)


def test_rounded_to_nearest_they_stand_still():
    """Why there is stochastic rounding: this is what the tests above would find."""
    with pytest.warns(UserWarning, match="stands still"):
        result = run(fused_optim.AdamW, 0.999, state_dtype=torch.bfloat16)
    kept, exact = result["exp_avg_sq", False]
    assert (kept / exact).median() > 1.5


#: Updates of a two-hundredth of the parameter's unit in the last place.
UPDATES, UNIT = 10_000, 2.0**-7


def walked(**options):
    p = Parameter(torch.full((4096,), 1.0).bfloat16())
    ours = fused_optim.SGD([p], lr=UNIT / 200, **options)
    p.grad = torch.full_like(p, -1.0)
    for _ in range(UPDATES):
        ours.step()
    assert ours.fallback_reason is None
    return torch.stack(list(ours.master_parameters()))[0] - 1.0


EXPECTED = UPDATES * UNIT / 200


@pytest.mark.parametrize(
    "options",
    [
        {"master_bits": 32},
        {"master_bits": 24, "stochastic_rounding": True},
        {"stochastic_rounding": True},
    ],
    ids=str,
)
def test_small_updates_arrive(options):
    way = walked(**options)
    assert abs(way.mean() / EXPECTED - 1) <= 0.01
    if options == {"master_bits": 32}:
        assert way.min() == way.max()


def test_without_them_they_are_lost():
    assert walked().abs().max() == 0
