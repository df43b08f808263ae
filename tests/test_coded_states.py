"""``state_dtype=torch.int8``: moments in 8 bits, the same everywhere, saved as floats."""

import copy
import itertools
import pickle

import pytest
import torch
from coded import LARGE, all_bits, assert_same_bits, make, set_grads, step
from torch.nn import Parameter
from twins import CODED, FUSED, SUPPORTED_ISAS, TORCH

import fused_optim
import fused_optim._C as _C

coded = pytest.mark.parametrize("cls", CODED, ids=lambda cls: cls.__name__)


@coded
def test_states_are_codes(cls):
    params, optimizer = make(cls)
    step(optimizer, times=2)
    state = optimizer.state[params[0]]
    for name, is_signed in _C.moments(cls._rule):
        if name not in state:
            continue
        assert state[name].dtype == (torch.int8 if is_signed else torch.uint8)
        assert state[name].shape == LARGE
        assert state[_C.scales_name(name)].shape == ((70 * 67 + 127) // 128,)
    assert "step" in state  # which random bits are counted by, also where the rule has none


@coded
def test_values_are_those_of_floats_but_for_rounding(cls):
    """After one step from nothing: a first moment within a step between codes, a second one within
    a sixteenth."""
    _, optimizer = make(cls)
    plain, floats = make(cls, state_dtype=None)
    step(optimizer)
    step(floats)
    ours, exact = optimizer.state_dict()["state"][0], floats.state[plain[0]]
    for name, is_signed in _C.moments(cls._rule):
        if name not in exact:
            continue
        value, expected = ours[name], exact[name]
        if is_signed:
            largest = expected.abs().max()
            bound = 2 * largest / 127 * (expected.abs() / largest).sqrt() + largest / 127**2
            assert bool(((value - expected).abs() <= bound * 1.01 + largest * 2**-9).all())
        else:
            is_in_range = expected > expected.max() * 2.0**-13
            assert bool(((value / expected - 1).abs()[is_in_range] <= 1 / 16 + 1e-6).all())
            assert torch.equal(value == 0, expected == 0)


@coded
def test_one_result(cls):
    shapes = [LARGE, (4096,), (5000,), (140_001,)]
    results = []
    for isa, threads in itertools.product(SUPPORTED_ISAS, (1, 3)):
        _C.set_isa(isa)
        torch.set_num_threads(threads)
        _, optimizer = make(cls, shapes, torch.bfloat16, master_bits=24, stochastic_rounding=True)
        step(optimizer, times=3)
        results.append(all_bits(optimizer))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_grouping_and_strides():
    """A parameter's number counts, not its group; elements are counted in memory."""
    shapes = [LARGE, (64, 8, 3, 3)]
    params, optimizer = make(fused_optim.AdamW, shapes)
    groups = [{"params": [Parameter(p.detach().clone())]} for p in params]
    apart = fused_optim.AdamW(groups, **CODED[fused_optim.AdamW], state_dtype=torch.int8)
    step(optimizer, [group["params"][0] for group in groups], times=3)
    for i in range(3):
        set_grads([group["params"][0] for group in groups], seed=i)
        apart.step()
    assert_same_bits(all_bits(optimizer), all_bits(apart))
    # In another order every element has other neighbours in its block, but no other place.
    last = Parameter(params[1].detach().clone(memory_format=torch.channels_last))
    optimizer = fused_optim.AdamW([last], state_dtype=torch.int8)
    step(optimizer)
    values = optimizer.state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(values, 0.1 * last.grad, rtol=0.02, atol=2e-3)
    assert values.stride() == last.stride()


def test_other_seeds_give_other_bits():
    results = []
    for seed in (0, 1, 2**64 - 1):
        _, optimizer = make(fused_optim.AdamW, rounding_seed=seed)
        assert optimizer.rounding_seed == seed
        step(optimizer)
        results.append(optimizer.state_dict()["state"][0]["exp_avg"])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    for bad in (-1, 2**64, 1.0, "1", None, True):
        with pytest.raises(ValueError, match="rounding_seed"):
            make(fused_optim.AdamW, rounding_seed=bad)


def test_a_parameter_that_changes_its_memory_order():
    params, optimizer = make(fused_optim.AdamW, [(64, 8, 3, 3)])
    step(optimizer)
    before = optimizer.state_dict()["state"][0]["exp_avg"]
    params[0].data = params[0].data.clone(memory_format=torch.channels_last)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    assert optimizer.fallback_reason is None
    after = optimizer.state_dict()["state"][0]["exp_avg"]
    assert after.stride() == params[0].stride()
    # A step between codes is 2 c of c^2, here up to a sixteenth of what is not near zero.
    torch.testing.assert_close(after, 0.9 * before, rtol=0.06, atol=4e-3)


def test_small_tensors_and_groups_of_their_own():
    small, large, rows = Parameter(torch.randn(4095)), Parameter(torch.randn(4096)), None
    rows = Parameter(torch.randn(100, 64))
    optimizer = fused_optim.AdamW(
        [{"params": [small, large]}, {"params": [rows], "state_dtype": torch.float32}],
        state_dtype={"exp_avg": torch.int8, "exp_avg_sq": torch.bfloat16},
        stochastic_rounding=True,
    )
    step(optimizer)
    dtypes = {p: (s["exp_avg"].dtype, s["exp_avg_sq"].dtype) for p, s in optimizer.state.items()}
    assert dtypes[small] == (torch.float32, torch.bfloat16)
    assert dtypes[large] == (torch.int8, torch.bfloat16)
    assert dtypes[rows] == (torch.float32, torch.float32)


@coded
def test_a_run_goes_on_to_the_bit(cls):
    params, optimizer = make(cls, [LARGE, (33,), (64, 8, 3, 3)], ema_decay=0.9)
    params[2].data = params[2].data.clone(memory_format=torch.channels_last)
    step(optimizer, times=3)
    saved = copy.deepcopy(optimizer.state_dict())
    assert not any(name.endswith("_scales") for name in saved["state"][0])
    assert all(value.is_floating_point() for value in saved["state"][0].values())
    resumed = [Parameter(p.detach().clone()) for p in params]
    options = {**CODED[cls], "state_dtype": torch.int8, "ema_decay": 0.9}
    again = cls(resumed, **options)
    again.load_state_dict(saved)
    (unpickled,) = pickle.loads(pickle.dumps([optimizer]))
    others = [again, unpickled, copy.deepcopy(optimizer)]
    step(optimizer, seed=7, times=3)
    for other in others:
        step(other, seed=7, times=3)
        assert_same_bits(all_bits(other)[: len(params)], all_bits(optimizer)[: len(params)])


@coded
def test_torch_loads_it_and_we_load_torchs(cls):
    params, optimizer = make(cls)
    step(optimizer, times=2)
    plain = [Parameter(p.detach().clone()) for p in params]
    theirs = TORCH[cls](plain, **CODED[cls])
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    set_grads(plain)
    theirs.step()
    again, optimizer = make(cls)
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    names = [name for name, _ in _C.moments(cls._rule) if name in optimizer.state[again[0]]]
    assert names
    for name in names:
        assert optimizer.state[again[0]][name].element_size() == 1
    step(optimizer)
    # And what is in 8 bits goes into floats.
    floats, wide = make(cls, state_dtype=torch.float32)
    wide.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name in names:
        assert wide.state[floats[0]][name].dtype == torch.float32
    step(wide)


def test_a_negative_second_moment_is_no_number_as_in_a_step_of_torch():
    _, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    saved = optimizer.state_dict()
    second = saved["state"][0]["exp_avg_sq"].flatten()
    second[200] = -second[200]
    params, other = make(fused_optim.AdamW)
    other.load_state_dict(saved)
    step(other)
    is_nan = params[0].detach().flatten().isnan()
    assert is_nan[128:256].all() and not is_nan[:128].any() and not is_nan[256:].any()


def test_assigning_it_converts_what_is_there():
    params, optimizer = make(fused_optim.AdamW, state_dtype=None)
    step(optimizer, times=2)
    state = optimizer.state[params[0]]
    for dtype, kept in [
        (torch.int8, torch.int8),
        (None, torch.int8),
        (torch.bfloat16, torch.bfloat16),
        (torch.int8, torch.int8),
        (torch.float32, torch.float32),
    ]:
        before = optimizer.state_dict()["state"][0]["exp_avg"].float()
        optimizer.state_dtype = dtype
        optimizer.stochastic_rounding = True
        params[0].grad = torch.zeros(LARGE)
        optimizer.step()
        assert optimizer.fallback_reason is None
        assert state["exp_avg"].dtype == kept
        after = optimizer.state_dict()["state"][0]["exp_avg"].float()
        torch.testing.assert_close(after, before * 0.9, rtol=0.05, atol=2e-3)


def test_scales_that_are_of_no_use_any_more():
    params, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    optimizer.state_dtype = torch.float32
    step(optimizer)
    assert "exp_avg_scales" not in optimizer.state_dict()["state"][0]
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("cls", FUSED)
def test_bad_values(cls):
    p = Parameter(torch.zeros(3))
    for bad in (1, None, "yes", 0.0):
        with pytest.raises(ValueError, match="stochastic_rounding"):
            cls([p], stochastic_rounding=bad)
        with pytest.raises(ValueError, match="stochastic_rounding"):
            cls([{"params": [p], "stochastic_rounding": bad}])
    with pytest.raises(ValueError, match="state_dtype"):
        cls([p], state_dtype=torch.uint8)
    with pytest.raises(ValueError, match="ema_dtype"):
        cls([p], ema_dtype=torch.int8)


def test_what_a_state_dict_holds_of_the_options():
    """They are this optimizer's own, and its groups': none is saved with the defaults or loaded."""
    p = Parameter(torch.zeros(5000).bfloat16())
    options = {"master_bits": 24, "stochastic_rounding": True}
    optimizer = fused_optim.AdamW(
        [{"params": [p], **options, "state_dtype": torch.int8}], rounding_seed=3
    )
    assert not {*options, "rounding_seed", "state_dtype"} & optimizer.defaults.keys()
    other = Parameter(torch.zeros(5000).bfloat16())
    plain = fused_optim.AdamW([other])
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not {*options, "state_dtype"} & plain.param_groups[0].keys()
    optimizer.load_state_dict(plain.state_dict())
    assert {name: optimizer.param_groups[0][name] for name in options} == options
    text = repr(fused_optim.AdamW([p], **options))
    assert "master_bits: 24" in text and "stochastic_rounding: True" in text


def test_the_warning_of_second_moments_that_stand_still():
    p = Parameter(torch.zeros(3))
    with pytest.warns(UserWarning, match="'exp_avg_sq' in bfloat16.*stochastic_rounding=True"):
        fused_optim.AdamW([p], state_dtype=torch.bfloat16)
    for options in (
        {"betas": (0.9, 0.95)},
        {"stochastic_rounding": True},
        {"state_dtype": {"exp_avg": torch.bfloat16}},
    ):
        fused_optim.AdamW([p], **{"state_dtype": torch.bfloat16, **options})
    fused_optim.SGD([p], momentum=0.9, state_dtype=torch.bfloat16)
