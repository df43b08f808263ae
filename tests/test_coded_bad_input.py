"""8-bit states that are refused, or that are not what they should be."""

import copy

import pytest
import torch
from coded import LARGE, all_bits, assert_same_bits, make, set_grads, step
from torch.nn import Parameter
from twins import assert_unchanged, same_bits, snapshot

import fused_optim

REFUSED = {
    (fused_optim.Rprop, torch.int8): "step_size",
    (fused_optim.ASGD, torch.int8): "ax",
}


def test_states_whose_dynamics_are_not_known():
    p = Parameter(torch.zeros(5000))
    p.grad = torch.ones_like(p)
    for (cls, dtype), _ in REFUSED.items():
        with pytest.raises(ValueError, match="which '\\w+' can't have"):
            cls([p], state_dtype=dtype)
    for cls, name in [(fused_optim.Rprop, "step_size"), (fused_optim.AdamW, "max_exp_avg_sq")]:
        with pytest.raises(ValueError, match=f"which '{name}' can't have"):
            cls([p], state_dtype={name: torch.int8})
    for options, name in [
        ({"amsgrad": True}, "max_exp_avg_sq"),
        ({"centered": True}, "square_avg can't have with centered"),
    ]:
        cls = fused_optim.AdamW if "amsgrad" in options else fused_optim.RMSprop
        optimizer = cls([p], state_dtype=torch.int8, **options)
        with pytest.raises(RuntimeError, match=f"group 0: state_dtype is torch.int8, which {name}"):
            optimizer.step()
        assert not optimizer.state
    with pytest.raises(ValueError, match="state_dtype"):
        fused_optim.AdamW([p], state_dtype={"step": torch.int8})


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_dtypes_of_parameters_that_have_none(dtype):
    p = Parameter(torch.zeros(5000, dtype=dtype))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.AdamW([p], state_dtype=torch.int8)
    with pytest.raises(RuntimeError, match="parameter 0: 'exp_avg' can't be in 8 bits"):
        optimizer.step()
    assert not optimizer.state
    # Neither those that are there, whose parameter has become another.
    params, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    for asked in (torch.int8, torch.float32, None):
        optimizer.state_dtype = asked
        params[0].data = params[0].data.to(dtype)
        params[0].grad = torch.ones_like(params[0])
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="parameter 0: 'exp_avg' can't be in 8 bits"):
            optimizer.step()
        assert_unchanged(optimizer, before)


BAD = {
    "exp_avg' has dtype Byte": ("exp_avg", lambda t: t.view(torch.uint8)),
    "exp_avg_sq' has dtype Char": ("exp_avg_sq", lambda t: t.view(torch.int8)),
    "exp_avg' has shape": ("exp_avg", lambda t: t[:-1]),
    "exp_avg_scales' has dtype Double": ("exp_avg_scales", lambda t: t.double()),
    "exp_avg_scales' has shape": ("exp_avg_scales", lambda t: t[:-1]),
    "exp_avg_scales' is not dense": ("exp_avg_scales", lambda t: t[:1].expand(t.shape)),
    "exp_avg_scales' is no tensor": ("exp_avg_scales", lambda t: [1.0]),
    "exp_avg_scales' is missing": ("exp_avg_scales", None),
    "exp_avg_scales' is on meta": ("exp_avg_scales", lambda t: t.to("meta")),
    "exp_avg' has dtype Int": ("exp_avg", lambda t: t.int()),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    params, optimizer = make(fused_optim.AdamW, [LARGE, LARGE])
    step(optimizer)
    state, (name, change) = optimizer.state[params[1]], BAD[what]
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])
    before = snapshot(optimizer)
    set_grads(params, seed=1)
    with pytest.raises(RuntimeError, match=f"group 0, parameter 1: '{what}.*Nothing was changed"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_what_is_written_into_a_group_by_hand():
    """Is looked at, as ``state_dtype`` is."""
    params, optimizer = make(fused_optim.AdamW, dtype=torch.bfloat16, state_dtype=None)
    step(optimizer)
    optimizer.param_groups[0]["state_dtype"] = torch.int8
    step(optimizer, times=2)
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.int8
    assert optimizer.state_dict()["state"][0]["exp_avg"].dtype == torch.float32
    for name, bad in [("master_bits", 16), ("stochastic_rounding", 1), ("state_dtype", "int8")]:
        before = snapshot(optimizer)
        optimizer.param_groups[0][name] = bad
        with pytest.raises(RuntimeError, match=f"group 0: {name} is .*Nothing was changed"):
            optimizer.step()
        assert_unchanged(optimizer, before)
        del optimizer.param_groups[0][name]
    optimizer.param_groups[0]["master_bits"] = 24
    step(optimizer)
    assert optimizer.state[params[0]]["remainder"].dtype == torch.int8


def test_a_state_that_comes_from_another_optimizer():
    params, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    others, other = make(fused_optim.AdamW, state_dtype=None)
    other.state[others[0]] = copy.deepcopy(optimizer.state[params[0]])
    assert other.state_dict()["state"][0]["exp_avg"].dtype == torch.float32
    step(optimizer, others, seed=3)
    other.step()
    assert other.fallback_reason is None
    assert_same_bits(all_bits(other)[1:], all_bits(optimizer)[1:])


def test_state_dicts_that_do_not_fit():
    """What can't be put into codes is loaded as it is, and the step names it."""
    for name, change, what in [
        ("exp_avg", lambda t: t[0], "has shape"),
        ("exp_avg", lambda t: t.new_tensor(0.5), "has shape"),
        ("exp_avg_sq", lambda t: t[:-1], "has shape"),
        ("exp_avg_sq", lambda t: t.to(torch.uint8), "scales' is missing"),
    ]:
        _, optimizer = make(fused_optim.AdamW)
        step(optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][name] = change(saved["state"][0][name])
        optimizer.load_state_dict(saved)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=f"parameter 0: '{name}.*{what}"):
            optimizer.step()
        assert_unchanged(optimizer, before)


def test_parameters_without_memory_load_floats():
    """On the meta device, where nothing can be encoded; a step there is refused."""
    _, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    p = Parameter(torch.empty(LARGE, device="meta"))
    other = fused_optim.AdamW([p], state_dtype=torch.int8)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = other.state[p]["exp_avg"]
    assert state.is_meta and state.shape == p.shape and state.dtype == torch.float32


def test_memory_that_is_gone():
    """As where a wrapper has freed it: an error that names it, from whatever would read it."""
    for name in ("exp_avg", "exp_avg_scales"):
        params, optimizer = make(fused_optim.AdamW)
        step(optimizer)
        optimizer.state[params[0]][name].untyped_storage().resize_(16)
        with pytest.raises(RuntimeError, match="group 0, parameter 0: 'exp_avg' does not fit"):
            optimizer.state_dict()
        with pytest.raises(RuntimeError, match=f"parameter 0: '{name}' reaches beyond"):
            optimizer.step()
    for dtype in (torch.float32, torch.bfloat16):
        _, optimizer = make(fused_optim.AdamW, dtype=dtype)
        step(optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["exp_avg"].untyped_storage().resize_(16)
        optimizer.load_state_dict(saved)
        with pytest.raises(RuntimeError, match="parameter 0: 'exp_avg' reaches beyond"):
            optimizer.step()


def test_states_that_stay_floats_beside_codes():
    """max_exp_avg_sq, states of double parameters, and square_avg with ``centered``: a load leaves
    them their bits, also where the step then refuses what was asked for."""
    params, wide = make(fused_optim.AdamW, amsgrad=True, state_dtype=None)
    step(wide)
    asked = {"exp_avg": torch.int8}
    _, optimizer = make(fused_optim.AdamW, amsgrad=True, state_dtype=asked)
    optimizer.load_state_dict(copy.deepcopy(wide.state_dict()))
    step(optimizer)
    params, wide = make(fused_optim.AdamW, dtype=torch.float64, state_dtype=None)
    step(wide)
    doubles, optimizer = make(fused_optim.AdamW, dtype=torch.float64)
    optimizer.load_state_dict(copy.deepcopy(wide.state_dict()))
    for name in ("exp_avg", "exp_avg_sq"):
        assert same_bits(optimizer.state[doubles[0]][name], wide.state[params[0]][name])
    params, wide = make(fused_optim.RMSprop, centered=True, state_dtype=None)
    step(wide)
    others, optimizer = make(fused_optim.RMSprop, centered=True)
    optimizer.load_state_dict(copy.deepcopy(wide.state_dict()))
    name = "square_avg"
    assert same_bits(optimizer.state[others[0]][name], wide.state[params[0]][name])
    # The option comes with the state dict.
    others, optimizer = make(fused_optim.RMSprop)
    optimizer.load_state_dict(copy.deepcopy(wide.state_dict()))
    assert same_bits(optimizer.state[others[0]][name], wide.state[params[0]][name])
    others, optimizer = make(fused_optim.RMSprop)
    step(optimizer)
    optimizer.state_dtype = None
    optimizer.param_groups[0]["centered"] = True
    optimizer.state[others[0]]["grad_avg"] = torch.zeros(LARGE)
    with pytest.raises(RuntimeError, match="'square_avg' can't be in 8 bits with centered"):
        optimizer.step()


def test_a_view_beyond_its_memory():
    params, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    scales = optimizer.state[params[0]]["exp_avg_scales"]
    scales.untyped_storage().resize_(16)
    set_grads(params)
    with pytest.raises(RuntimeError, match="'exp_avg_scales' reaches beyond its storage"):
        optimizer.step()


def test_numbers_that_are_none_stay_in_their_block():
    params, optimizer = make(fused_optim.AdamW)
    step(optimizer)
    optimizer.state[params[0]]["exp_avg_scales"][3] = float("nan")
    set_grads(params)
    optimizer.step()
    is_nan = params[0].detach().flatten().isnan()
    assert bool(is_nan[3 * 128 : 4 * 128].all()) and is_nan.sum() == 128


def test_torchs_own_step_has_no_codes():
    params, optimizer = make(fused_optim.AdamW, foreach=True)
    set_grads(params)
    with pytest.raises(RuntimeError, match="parameter 0: 'exp_avg' is to be in 8 bits.*torch's"):
        optimizer.step()
    assert not optimizer.state


def test_codes_that_share_memory():
    params, optimizer = make(fused_optim.AdamW, [LARGE, LARGE])
    step(optimizer)
    for name in ("exp_avg", "exp_avg_scales"):
        optimizer.state[params[1]][name] = optimizer.state[params[0]][name]
    set_grads(params, seed=1)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="8 bits.*overlap"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_a_counter_in_the_memory_of_another_tensor():
    """Counters may be one tensor, but nothing else: the count would be written into a parameter."""
    params, optimizer = make(fused_optim.SGD, [LARGE, LARGE])
    step(optimizer)
    first, second = (optimizer.state[p] for p in params)
    second["step"] = first["step"]
    step(optimizer)
    assert first["step"] == 3
    with torch.no_grad():
        params[1][0, 0] = 3.0
    second["step"] = params[1].detach()[0, 0]
    set_grads(params)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="8 bits.*overlap"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_small_states_on_torchs_own_step(dtype):
    """Stay floats, where the kernels would leave them in float32, or are refused as there."""
    params, optimizer = make(fused_optim.AdamW, [(5, 3)], dtype, foreach=True)
    others, other = make(fused_optim.AdamW, [(5, 3)], dtype, foreach=True, state_dtype=None)
    for seed in range(2):
        set_grads(params, others, seed=seed)
        if dtype != torch.float32:
            before = snapshot(optimizer)
            with pytest.raises(RuntimeError, match="parameter 0: 'exp_avg' .*Nothing was changed"):
                optimizer.step()
            assert_unchanged(optimizer, before)
            continue
        optimizer.step()
        other.step()
        assert_same_bits(all_bits(optimizer), all_bits(other))


def test_torchs_own_step_rounds_no_moments_stochastically():
    """Of float32 parameters, whose other tensors it could step."""
    for late in (False, True):
        asked = None if late else torch.bfloat16
        _, optimizer = make(fused_optim.AdamW, state_dtype=torch.bfloat16, stochastic_rounding=True)
        step(optimizer)
        optimizer.state_dtype = asked
        optimizer.defaults["foreach"] = True
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="parameter 0: .*stochastic.* but the step is torch"):
            optimizer.step()
        assert_unchanged(optimizer, before)
        optimizer.state_dtype = {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.float32}
        optimizer.step()  # which rounds to nearest what is to be rounded so


def test_a_skipped_step_counts_no_random_bits():
    params, optimizer = make(fused_optim.Lion, skip_nonfinite=True)
    step(optimizer)
    params[0].grad = torch.full(LARGE, float("inf"))
    before = snapshot(optimizer)
    optimizer.step()
    assert_unchanged(optimizer, before)
    assert optimizer.state[params[0]]["step"] == 1
