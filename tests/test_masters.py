"""``master_bits``: bfloat16 parameters that are trained as float32, to the bit."""

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn import Parameter
from twins import CASES, FUSED, SUPPORTED_ISAS, all_options, case_id, same_bits, snapshot
from twins import assert_unchanged as unchanged

import fused_optim
import fused_optim._C as _C

SHAPES = [(5, 7), (33,), (), (2, 3, 4), (1000,), (0,), (140_001,)]
STEP_OPTIONS = {
    "max_grad_norm": 0.5,
    "skip_nonfinite": True,
    "zero_grads": True,
    "ema_decay": 0.9,
}


def make(cls, dtype, options, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    params = [Parameter(value.to(dtype)) for value in values]
    return params, cls(params, **options)


def set_grads(*lists, seed, scale=1.0):
    generator = torch.Generator().manual_seed(100 + seed)
    for same in zip(*lists, strict=True):
        grad = torch.randn(same[0].shape, generator=generator).bfloat16() * scale
        for p in same:
            p.grad = grad.to(p.dtype)


def assert_trained_as_float32(ours, theirs, params, wide):
    masters = list(ours.master_parameters())
    for master, p, q in zip(masters, params, wide, strict=True):
        assert same_bits(master, q.detach())
        # The parameter is its master to nearest: half a unit off at most.
        assert torch.equal(
            (p.detach().float() - q).abs() <= q.abs() * 2**-8, torch.ones_like(q) > 0
        )
        mine, other = ours.state[p], theirs.state.get(q, {})
        assert mine.keys() - {"remainder"} == other.keys()
        for name, value in other.items():
            assert same_bits(mine[name], value), name


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("extra", [{}, STEP_OPTIONS], ids=["plain", "step options"])
def test_every_bit_is_float32s(case, extra):
    cls, options = case
    options = {**options, **extra}
    steps = 100 if case == (cls, all_options(cls)) else 5
    params, ours = make(cls, torch.bfloat16, {**options, "master_bits": 32}, SHAPES[:6])
    wide, theirs = make(cls, torch.float32, options, SHAPES[:6])
    for seed in range(steps):
        set_grads(params, wide, seed=seed, scale=float("inf") if extra and seed == 2 else 1.0)
        ours.step()
        theirs.step()
        assert ours.fallback_reason is None
    assert_trained_as_float32(ours, theirs, params, wide)


def test_instruction_sets_threads_and_amp():
    results = []
    for isa, threads in itertools.product(SUPPORTED_ISAS, (1, 2)):
        _C.set_isa(isa)
        torch.set_num_threads(threads)
        for bits in (32, 24):
            options = {"master_bits": bits, "stochastic_rounding": bits == 24}
            params, ours = make(fused_optim.AdamW, torch.bfloat16, options)
            for seed in range(3):
                set_grads(params, seed=seed)
                ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(float(seed == 1))
                ours.step()
            results.append((bits, [p.detach() for p in params] + list(ours.master_parameters())))
    for bits, result in results:
        first = next(r for b, r in results if b == bits)
        assert all(same_bits(a, b) for a, b in zip(result, first, strict=True))


def test_masters_of_24_bits_lose_no_more_than_their_rounding():
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 24})
    wide, theirs = make(fused_optim.AdamW, torch.float32, {})
    for seed in range(50):
        set_grads(params, wide, seed=seed)
        ours.step()
        theirs.step()
    for p, master, q in zip(params, ours.master_parameters(), wide, strict=True):
        assert ours.state[p]["remainder"].dtype == torch.int8
        # 50 roundings of half a unit of 16 bits each.
        assert bool(((master - q).abs() <= 50 * 2**-16 * q.abs().clamp(min=0.1)).all())


def test_strides():
    """Parameter, gradient, states and remainder in different memory orders."""
    values = torch.randn(8, 6, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        p = Parameter(values.clone(memory_format=order))
        ours = fused_optim.AdamW([p], master_bits=32)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            p.grad = torch.randn(values.shape, generator=generator).bfloat16()
            if seed == 2:  # the parameter moves to the other order, its state stays as it is
                p.data = p.data.clone(memory_format=torch.channels_last)
            ours.step()
            assert ours.fallback_reason is None
        results.append(next(ours.master_parameters()))
    assert torch.equal(*results)


def test_checkpoints_go_on_to_the_bit():
    options = {**all_options(fused_optim.AdamW), "master_bits": 32, "ema_decay": 0.9}
    params, ours = make(fused_optim.AdamW, torch.bfloat16, options)
    for seed in range(3):
        set_grads(params, seed=seed)
        ours.step()
    saved = copy.deepcopy(ours.state_dict())
    assert saved["state"][0]["exp_avg"].dtype == torch.float32
    assert saved["state"][0]["remainder"].dtype == torch.float32
    assert ours.state[params[0]]["remainder"].dtype == torch.int16
    resumed = [Parameter(p.detach().clone()) for p in params]
    again = fused_optim.AdamW(resumed, **options)
    again.load_state_dict(saved)
    (copied,) = pickle.loads(pickle.dumps([ours]))
    of_copy = copied.param_groups[0]["params"]
    set_grads(params, resumed, of_copy, seed=7)
    for optimizer in (ours, again, copied):
        optimizer.step()
    for other in (again, copied):
        pairs = zip(ours.master_parameters(), other.master_parameters(), strict=True)
        assert all(same_bits(a, b) for a, b in pairs)
        assert other.master_bits == 32


def test_torch_loads_it_and_we_load_torchs():
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32})
    set_grads(params, seed=0)
    ours.step()
    plain = [Parameter(p.detach().clone()) for p in params]
    theirs = torch.optim.AdamW(plain)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    set_grads(params, plain, seed=1)
    theirs.step()
    # torch has stepped the parameters, and made another number of the remainders.
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert "remainder" not in ours.state[params[0]]
    ours.step()
    assert ours.state[params[0]]["exp_avg"].dtype == torch.float32


def test_before_the_first_step_and_other_parameters():
    half, single = Parameter(torch.randn(9).bfloat16()), Parameter(torch.randn(9))
    ours = fused_optim.SGD(
        [{"params": [single]}, {"params": [half]}], lr=0.1, momentum=0.9, master_bits=32
    )
    masters = list(ours.master_parameters())
    assert [m.dtype for m in masters] == [torch.float32] * 2
    assert torch.equal(masters[0], single.detach()) and torch.equal(masters[1], half.float())
    set_grads([half, single], seed=0)
    ours.step()
    assert "remainder" in ours.state[half] and "remainder" not in ours.state[single]
    assert ours.state[half]["momentum_buffer"].dtype == torch.float32


def test_a_parameter_that_is_changed_wins():
    """What was left of the old value is half a unit at most, and nothing where it shows."""
    params, ours = make(fused_optim.SGD, torch.bfloat16, {"lr": 0.1, "master_bits": 32})
    set_grads(params, seed=0)
    ours.step()
    with torch.no_grad():
        for p in params:
            p.mul_(torch.arange(p.numel()).reshape(p.shape) % 2)
            p.grad = torch.zeros_like(p)
    ours.step()
    for p in params:
        even = p.detach().flatten()[::2]
        assert bool((even == 0).all())
    for master in ours.master_parameters():
        assert bool((master.flatten()[::2].abs() < 1e-40).all())


def test_averages_are_float32():
    params, ours = make(
        fused_optim.AdamW, torch.bfloat16, {"master_bits": 32, "ema_decay": 0.99}, [(50,)]
    )
    wide, theirs = make(fused_optim.AdamW, torch.float32, {"ema_decay": 0.99}, [(50,)])
    for seed in range(5):
        set_grads(params, wide, seed=seed)
        ours.step()
        theirs.step()
    assert same_bits(ours.state[params[0]]["ema"], theirs.state[wide[0]]["ema"])
    before = snapshot(ours)
    masters = list(ours.master_parameters())
    with ours.ema_parameters():
        assert torch.equal(params[0], theirs.state[wide[0]]["ema"].bfloat16())
    unchanged(ours, before)
    assert same_bits(next(ours.master_parameters()), masters[0])


@pytest.mark.parametrize("optimizer_class", FUSED)
@pytest.mark.parametrize("bad", [16, 0, 32.0, "32", True, torch.float32])
def test_bad_values(optimizer_class, bad):
    p = Parameter(torch.zeros(3).bfloat16())
    with pytest.raises(ValueError, match="master_bits"):
        optimizer_class([p], master_bits=bad)
    with pytest.raises(ValueError, match="master_bits"):
        optimizer_class([{"params": [p], "master_bits": bad}])
    optimizer = optimizer_class([p])
    with pytest.raises(ValueError, match="master_bits"):
        optimizer.master_bits = bad
    assert optimizer.master_bits is None


BAD_REMAINDERS = {
    "dtype Char": lambda r: r.to(torch.int8),
    "dtype Float": lambda r: r.float() + 0.5,
    "dtype BFloat16": lambda r: r.bfloat16(),
    "has shape": lambda r: r[:-1],
    "is no tensor": lambda r: 3,
    "not dense|strided|reaches": lambda r: r[:, :1].expand(r.shape),
    "meta": lambda r: r.to("meta"),
}


@pytest.mark.parametrize("what", BAD_REMAINDERS)
def test_bad_remainders(what):
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5), (6, 7)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[1]]["remainder"] = BAD_REMAINDERS[what](ours.state[params[1]]["remainder"])
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match=f"(group 0, parameter 1.*)?({what})"):
        ours.step()
    unchanged(ours, before)


def test_a_remainder_without_master_bits():
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5)])
    set_grads(params, seed=0)
    ours.step()
    before = snapshot(ours)
    ours.master_bits = None
    with pytest.raises(RuntimeError, match="'remainder' is in the state.*master_bits is None"):
        ours.step()
    unchanged(ours, before)
    without, theirs = make(fused_optim.AdamW, torch.bfloat16, {}, [(4, 5)])
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    set_grads(without, seed=0)
    with pytest.raises(RuntimeError, match="'remainder' is in the state"):
        theirs.step()


def test_memory_that_is_gone():
    """As where a wrapper has freed it: an error that names it, from whatever would read it."""
    for ema_decay in (None, 0.9):
        params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(40, 50)])
        set_grads(params, seed=0)
        ours.step()
        ours.state[params[0]]["remainder"].untyped_storage().resize_(0)
        ours.ema_decay = ema_decay
        with pytest.raises(RuntimeError, match="'remainder' reaches beyond its storage"):
            ours.step()
        with pytest.raises(RuntimeError, match="group 0, parameter 0: 'remainder' does not fit"):
            list(ours.master_parameters())
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(40, 50)])
    set_grads(params, seed=0)
    ours.step()
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][0]["remainder"].untyped_storage().resize_(16)
    ours.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="'remainder' reaches beyond its storage"):
        ours.step()

    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(40, 50)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[0]]["remainder"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="group 0, parameter 0: 'remainder' does not fit"):
        ours.state_dict()


def test_parameters_without_memory():
    """On the meta device, where checkpoints are planned."""
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5)])
    set_grads(params, seed=0)
    ours.step()
    p = Parameter(torch.empty(4, 5, dtype=torch.bfloat16, device="meta"))
    other = fused_optim.AdamW([p], master_bits=32)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    remainder = other.state_dict()["state"][0]["remainder"]
    assert remainder.is_meta and remainder.dtype == torch.float32
    assert next(other.master_parameters()).is_meta


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(24, 32), (24, 24), (32, 24)])
def test_remainders_of_masters_with_other_bits(saved_by, loaded_by):
    """Masters of 24 bits are some of 32, too. The reverse is an error, not another number."""
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": saved_by}, [(4, 5)])
    for seed in range(3):
        set_grads(params, seed=seed)
        ours.step()
    again = [Parameter(params[0].detach().clone())]
    other = fused_optim.AdamW(again, master_bits=loaded_by)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    if saved_by == 24:
        assert same_bits(next(ours.master_parameters()), next(other.master_parameters()))
    set_grads(again, seed=3)
    if saved_by == 24:
        other.step()
        return
    with pytest.raises(RuntimeError, match="'remainder' has dtype Float, master_bits=24"):
        other.step()


def test_remainders_that_are_none_are_left_for_the_step():
    for bad in (0.5, 1e6, float("nan")):
        params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5)])
        set_grads(params, seed=0)
        ours.step()
        saved = copy.deepcopy(ours.state_dict())
        saved["state"][0]["remainder"][1, 1] = bad
        ours.load_state_dict(saved)
        with pytest.raises(RuntimeError, match="parameter 0: 'remainder' has dtype Float"):
            ours.step()


def test_adagrads_sums_begin_in_float32_however_masters_are_asked_for():
    options = {"initial_accumulator_value": 0.1}
    results = []
    for late in (False, True):
        extra = {} if late else {"master_bits": 32}
        params, ours = make(fused_optim.Adagrad, torch.bfloat16, {**options, **extra}, [(4, 5)])
        ours.master_bits = 32
        set_grads(params, seed=0)
        ours.step()
        results.append(ours.state[params[0]]["sum"])
        ours.master_bits = 32  # sums that have been stepped stay
        assert same_bits(ours.state[params[0]]["sum"], results[-1])
    assert same_bits(*results)


def test_adagrads_sums_that_are_others_stay():
    """Loaded, cut short, or freed, before the first step: for the step to say what does not fit."""
    for change in (
        lambda state: state["sum"].fill_(3.0),
        lambda state: state["sum"].untyped_storage().resize_(0),
        lambda state: state["step"].untyped_storage().resize_(0),
        lambda state: state.update(step=torch.zeros(2)),
        lambda state: state.update(sum=None),
    ):
        params, ours = make(fused_optim.Adagrad, torch.bfloat16, {}, [(4, 5)])
        state = ours.state[params[0]]
        change(state)
        total = state["sum"]
        ours.master_bits = 32
        assert state["sum"] is total


def test_masters_while_parameters_hold_their_averages():
    params, ours = make(
        fused_optim.AdamW, torch.bfloat16, {"master_bits": 32, "ema_decay": 0.5}, [(50,)]
    )
    for seed in range(3):
        set_grads(params, seed=seed)
        ours.step()
    with ours.ema_parameters():
        assert torch.equal(next(ours.master_parameters()), params[0].detach().float())


def test_float16_has_none():
    params, ours = make(fused_optim.AdamW, torch.float16, {"master_bits": 32}, [(4, 5)])
    set_grads(params, seed=0)
    with pytest.raises(RuntimeError, match="parameter 0: 'param' has dtype Half, and master_bits"):
        ours.step()
    assert not ours.state


def test_torchs_own_step_has_no_masters():
    params, ours = make(
        fused_optim.AdamW, torch.bfloat16, {"master_bits": 32, "foreach": True}, [(4, 5)]
    )
    set_grads(params, seed=0)
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match="group 0, parameter 0: master_bits asks.*torch's own"):
        ours.step()
    unchanged(ours, before)


def test_torchs_own_step_averages_no_masters():
    """A parameter without a gradient, whose average would move towards the rounded one."""
    half, wide = Parameter(torch.randn(50).bfloat16()), Parameter(torch.randn(9, 4))
    ours = fused_optim.SGD([half, wide], lr=0.1, master_bits=32, ema_decay=0.5)
    set_grads([half, wide], seed=0)
    ours.step()
    half.grad, wide.grad = None, wide.grad.to_sparse()
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match="parameter 0: master_bits asks.*a gradient is sparse"):
        ours.step()
    unchanged(ours, before)


def test_compiled_steps_see_masters_of_another_optimizer():
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5)])
    set_grads(params, seed=0)
    ours.step()
    others, other = make(fused_optim.AdamW, torch.bfloat16, {}, [(4, 5)])
    set_grads(others, seed=0)
    other.state[others[0]] = {
        name: value.bfloat16() if value.dtype == torch.float32 and value.dim() else value
        for name, value in ours.state[params[0]].items()
    }
    with pytest.raises(RuntimeError, match="'remainder' is in the state"):
        torch.compile(lambda: other.step(), backend="eager")()


def test_a_remainder_as_a_state_dict_has_it():
    """ZeroRedundancyOptimizer puts what it loads into the state as it is. And what is none."""
    for bits in (24, 32):
        params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": bits}, [(4, 5)])
        for seed in range(2):
            set_grads(params, seed=seed)
            ours.step()
        again, other = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": bits}, [(4, 5)])
        with torch.no_grad():
            again[0].copy_(params[0])
        saved = copy.deepcopy(ours.state_dict()["state"][0])
        other.state[again[0]] = saved
        set_grads(params, again, seed=7)
        ours.step()
        other.step()
        assert same_bits(next(ours.master_parameters()), next(other.master_parameters()))
        for bad in (0.5, 2.0**16, float("nan"), float("inf")):
            other.state[again[0]]["remainder"] = torch.full((4, 5), bad)
            before = snapshot(other)
            with pytest.raises(RuntimeError, match="'remainder' has dtype Float, master_bits"):
                other.step()
            unchanged(other, before)


def test_what_shares_memory_with_a_remainder():
    params, ours = make(fused_optim.AdamW, torch.bfloat16, {"master_bits": 32}, [(4, 5), (4, 5)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[1]]["remainder"] = ours.state[params[0]]["remainder"]
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match="master_bits asks.*overlap"):
        ours.step()
    unchanged(ours, before)
