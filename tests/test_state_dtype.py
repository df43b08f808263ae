"""``state_dtype`` and ``ema_dtype``: what users write, what checkpoints keep, what is refused."""

import copy
import pickle

import pytest
import torch
from torch.nn import Parameter
from twins import FUSED, SCALARS, TORCH, all_options, same_bits

import fused_optim

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
classes = pytest.mark.parametrize("cls", FUSED)


def param(dtype=F32, seed=0, shape=(33,)):
    p = Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
    p.grad = torch.full_like(p, 0.1)
    return p


def step(optimizer, times=1):
    for _ in range(times):
        optimizer.step()
        assert optimizer.fallback_reason is None
    return optimizer


def dtypes(optimizer, p=None):
    """Of the states of the parameter's shape, by name."""
    state = optimizer.state[optimizer.param_groups[0]["params"][0] if p is None else p]
    return {n: t.dtype for n, t in state.items() if n not in SCALARS[type(optimizer)]}


def same_state(a, b):
    states = a.state_dict()["state"], b.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for one, other in zip(*(s.values() for s in states), strict=True):
        assert one.keys() == other.keys()
        assert all(same_bits(one[name], other[name]) for name in one)


@classes
@pytest.mark.parametrize("of_param", [F32, BF16, F16, torch.float64])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_new_states_have_the_dtype(cls, of_param, dtype):
    optimizer = step(cls([param(of_param)], **all_options(cls), state_dtype=dtype))
    assert set(dtypes(optimizer).values()) == {dtype}
    assert optimizer.state_dtype == dtype
    assert "state_dtype" not in optimizer.defaults
    assert "state_dtype" not in optimizer.param_groups[0]


def test_by_name_and_by_group():
    first, second, third = param(seed=1), param(seed=2), param(BF16, seed=3)
    optimizer = fused_optim.AdamW(
        [
            {"params": [first]},
            {"params": [second], "state_dtype": None},
            {"params": [third], "state_dtype": {"exp_avg_sq": F32}},
        ],
        state_dtype={"exp_avg": BF16},
    )
    step(optimizer)
    assert dtypes(optimizer, first) == {"exp_avg": BF16, "exp_avg_sq": F32}
    assert dtypes(optimizer, second) == {"exp_avg": F32, "exp_avg_sq": F32}
    assert dtypes(optimizer, third) == {"exp_avg": BF16, "exp_avg_sq": F32}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.float64, "float64"),
        (torch.uint8, "uint8"),
        ("bfloat16", "bfloat16"),
        ({"exp_avg": torch.float16}, "float16"),
        ({"exp_avg": None}, "is None"),
        ({"step": F32}, "'step' is not one of the states"),
        ({"momentum_buffer": F32}, "'momentum_buffer' is not one of"),
    ],
    ids=str,
)
def test_bad_values(value, message):
    with pytest.raises(ValueError, match=f"Invalid state_dtype.*{message}"):
        fused_optim.AdamW([param()], state_dtype=value)
    with pytest.raises(ValueError, match=f"Invalid state_dtype.*{message}"):
        fused_optim.AdamW([{"params": [param()], "state_dtype": value}])
    optimizer = fused_optim.AdamW([param()])
    with pytest.raises(ValueError, match=f"Invalid state_dtype.*{message}"):
        optimizer.state_dtype = value
    assert optimizer.state_dtype is None


@pytest.mark.parametrize("value", [torch.float64, "bfloat16", {1: F32}])
def test_a_bad_value_written_into_a_group_by_hand(value):
    optimizer = step(fused_optim.AdamW([{"params": [param()]}, {"params": [param(seed=1)]}]))
    optimizer.param_groups[1]["state_dtype"] = value
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=r"fused_optim.AdamW: group 1: state_dtype is"):
        optimizer.step()
    assert all(
        same_bits(a[name], b[name])
        for a, b in zip(
            optimizer.state_dict()["state"].values(), before["state"].values(), strict=True
        )
        for name in a
    )


def test_complex_parameters_have_complex_states_in_float32_alone():
    p = Parameter(torch.ones(5, dtype=torch.complex128))
    p.grad = torch.ones_like(p)
    assert set(dtypes(step(fused_optim.AdamW([p], state_dtype=F32))).values()) == {torch.complex64}
    optimizer = fused_optim.AdamW([p], state_dtype=BF16)
    with pytest.raises(RuntimeError, match="group 0, parameter 0: 'exp_avg' can't have dtype BF"):
        optimizer.step()
    assert not optimizer.state


@classes
def test_what_is_there_stays_and_is_converted_when_asked(cls):
    """Without the keyword a checkpoint decides; assigning it converts at the next step."""
    p = param(BF16)
    optimizer = step(cls([p], **all_options(cls)))
    assert set(dtypes(optimizer).values()) == {BF16}
    twin = copy.deepcopy(optimizer)
    q = twin.param_groups[0]["params"][0]
    q.grad = p.grad.clone()
    optimizer.state_dtype = F32
    for name in dtypes(twin):
        twin.state[q][name] = twin.state[q][name].float()
    step(optimizer)
    step(twin)
    assert set(dtypes(optimizer).values()) == {F32}
    same_state(optimizer, twin)
    optimizer.state_dtype = None
    step(optimizer)
    assert set(dtypes(optimizer).values()) == {F32}


def test_a_step_that_fails_converts_nothing():
    first, second = param(seed=1), param(seed=2)
    optimizer = step(fused_optim.AdamW([first, second]))
    optimizer.state[second]["exp_avg"] = torch.zeros(5)
    optimizer.state_dtype = BF16
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'exp_avg' has shape"):
        optimizer.step()
    assert set(dtypes(optimizer, first).values()) == {F32}


@classes
@pytest.mark.parametrize(("of_param", "dtype"), [(BF16, F32), (F32, BF16), (F16, F32)])
def test_checkpoints_keep_the_bits(cls, of_param, dtype):
    """A state dict, loaded with and without the keyword, goes on as if nothing had been."""
    asked = {"ema_decay": 0.9, "ema_dtype": F32}
    ours = step(cls([param(of_param)], **all_options(cls), state_dtype=dtype, **asked), 2)
    saved = copy.deepcopy(ours.state_dict())
    for keyword in ({"state_dtype": dtype}, {}):
        p = param(of_param, seed=5)
        p.data.copy_(ours.param_groups[0]["params"][0].detach())
        other = cls([p], **all_options(cls), **keyword, **asked)
        other.load_state_dict(copy.deepcopy(saved))
        same_state(ours, other)
        twin = copy.deepcopy(ours)
        twin.param_groups[0]["params"][0].grad = p.grad.clone()
        step(other)
        step(twin)
        same_state(twin, other)


def test_loading_converts_to_what_is_asked_for():
    saved = step(fused_optim.AdamW([param()])).state_dict()
    other = fused_optim.AdamW([param()], state_dtype={"exp_avg": BF16})
    other.load_state_dict(saved)
    assert dtypes(other) == {"exp_avg": BF16, "exp_avg_sq": F32}
    for name in ("exp_avg", "exp_avg_sq"):
        expected = saved["state"][0][name]
        assert same_bits(dict(other.state[other.param_groups[0]["params"][0]])[name],
                         expected.to(dtypes(other)[name]))  # fmt: skip


def test_loading_keeps_this_optimizers_own_keywords():
    theirs = step(fused_optim.AdamW([{"params": [param()], "state_dtype": BF16}], state_dtype=BF16))
    ours = fused_optim.AdamW([{"params": [param()], "state_dtype": F32}])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["state_dtype"] == F32 and ours.state_dtype is None
    assert set(dtypes(ours).values()) == {F32}
    plain = fused_optim.AdamW([param()])
    plain.load_state_dict(theirs.state_dict())
    assert "state_dtype" not in plain.param_groups[0]


@classes
def test_torch_optim_loads_it_and_back(cls):
    """torch gives states the parameter's dtype: where that holds them, back is exact."""
    ours = step(cls([param()], **all_options(cls), state_dtype=BF16), 2)
    theirs = TORCH[cls]([param()], **all_options(cls))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    theirs.step()  # no key or dtype is strange to it
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    back = cls([param()], **all_options(cls), state_dtype=BF16)
    back.load_state_dict(theirs.state_dict())
    same_state(ours, back)


def test_torchs_own_step_gets_what_torch_gives_it():
    """An optimizer that asks for torch's implementation loads as torch does."""
    saved = step(fused_optim.AdamW([param(BF16)], state_dtype=F32)).state_dict()
    other = fused_optim.AdamW([param(BF16)], foreach=True)
    other.load_state_dict(saved)
    assert set(dtypes(other).values()) == {BF16}
    other.step()


def test_torchs_own_step_keeps_narrow_states_narrow():
    p, q = param(), param()
    ours = fused_optim.AdamW([p], foreach=True, state_dtype=BF16)
    theirs = torch.optim.AdamW([q], foreach=True)
    for _ in range(3):
        ours.step()
        theirs.step()
        assert set(dtypes(ours).values()) == {BF16}
        assert same_bits(p.detach(), q.detach())
        for name in ("exp_avg", "exp_avg_sq"):
            theirs.state[q][name].copy_(theirs.state[q][name].bfloat16())
            assert same_bits(ours.state[p][name].float(), theirs.state[q][name])


def test_copies_and_pickles_have_it():
    optimizer = fused_optim.AdamW([param()], state_dtype={"exp_avg": BF16}, ema_dtype=F32)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.state_dtype == {"exp_avg": BF16} and other.ema_dtype == F32


def test_the_dict_is_the_optimizers_own():
    given = {"exp_avg": BF16}
    optimizer = fused_optim.AdamW([param()], state_dtype=given)
    given["exp_avg_sq"] = BF16
    assert optimizer.state_dtype == {"exp_avg": BF16}


@pytest.mark.parametrize("of_param", [F32, BF16, F16])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_averages_of_a_dtype_of_their_own(of_param, dtype):
    p = param(of_param)
    optimizer = fused_optim.AdamW([p], ema_decay=0.75, ema_dtype=dtype)
    step(optimizer)
    average = p.detach().to(dtype, copy=True)
    assert same_bits(optimizer.state[p]["ema"], average)
    for _ in range(3):
        step(optimizer)
        average = average.to(F32, copy=True).lerp_(p.detach().float(), 0.25).to(dtype)
        assert optimizer.state[p]["ema"].dtype == dtype
        # torch's lerp may fuse its multiplication and addition.
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(optimizer.state[p]["ema"], average, rtol=unit, atol=1e-7)
    p.grad = None  # and without a gradient
    before = optimizer.state[p]["ema"].clone()
    step(optimizer)
    expected = before.to(F32, copy=True).lerp_(p.detach().float(), 0.25).to(dtype)
    assert same_bits(optimizer.state[p]["ema"], expected)


@pytest.mark.parametrize(("of_param", "dtype"), [(BF16, F32), (F32, BF16), (F16, F32)])
def test_parameters_hold_averages_of_another_dtype_and_get_all_bits_back(of_param, dtype):
    p = param(of_param)
    optimizer = step(fused_optim.AdamW([p], ema_decay=0.5, ema_dtype=dtype), 3)
    before, average = p.detach().clone(), optimizer.state[p]["ema"].clone()
    with optimizer.ema_parameters():
        assert same_bits(p.detach(), average.to(of_param))
        assert same_bits(optimizer.state[p]["ema"], before.to(dtype))
    assert same_bits(p.detach(), before)
    assert same_bits(optimizer.state[p]["ema"], average)
    with pytest.raises(ValueError, match="inside"), optimizer.ema_parameters():
        raise ValueError("inside")
    assert same_bits(p.detach(), before)


def test_existing_averages_are_converted():
    p = param(BF16)
    optimizer = step(fused_optim.AdamW([p], ema_decay=0.5), 2)
    optimizer.ema_dtype = F32
    step(optimizer)
    assert optimizer.state[p]["ema"].dtype == F32


def test_it_is_said_by_repr():
    text = repr(fused_optim.AdamW([param()], state_dtype=BF16))
    assert "state_dtype: torch.bfloat16" in text
