"""Bad state and gradients: an error that names group, parameter and tensor; nothing is changed,
nothing outside a tensor is touched."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter
from twins import (
    CASES,
    FUSED,
    SCALARS,
    TORCH,
    assert_same_values,
    assert_unchanged,
    case_id,
    make_params,
    on_cuda,
    set_grads,
    snapshot,
)

import fused_optim

#: What a corrupt checkpoint may hold in a state tensor's place.
CORRUPTIONS = {
    "missing": lambda t: None,
    "too short": lambda t: t.flatten()[:-1].clone(),
    "too long": lambda t: torch.cat([t.flatten(), t.flatten()[:1]]),
    "empty": lambda t: t.new_empty(0),
    "scalar": lambda t: t.flatten()[0].clone(),
    "other shape": lambda t: t.reshape(-1, 1).clone(),
    "other dtype": lambda t: t.to(torch.float64),
    "integer": lambda t: t.to(torch.int32),
    "other device": lambda t: t.to("meta"),
    "no tensor": lambda t: [0.0],
}
SHAPES = [(4, 6), (3,), (2, 5)]


def prepared(cls, options):
    """Two groups, stepped twice, gradients ready for the third step."""
    params = make_params(SHAPES)
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **options)
    for seed in range(2):
        set_grads(params, seed=seed)
        optimizer.step()
    set_grads(params, seed=2)
    return params, optimizer


#: Of a scalar these are no corruption, of `step` also what torch's own step takes.
FINE_FOR_SCALARS = {"scalar", "other shape", "other dtype"}
FINE_FOR_STEP = FINE_FOR_SCALARS | {"too short", "integer", "no tensor"}


def state_keys(cls, options):
    params, optimizer = prepared(cls, options)
    return list(optimizer.state.get(params[0], {}))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_corrupt_state_at_every_position(case, corruption):
    cls, options = case
    places = [(0, 0), (0, 1), (1, 0)]
    for (position, (group, index)), key in itertools.product(
        enumerate(places), state_keys(cls, options)
    ):
        if key in SCALARS[cls] and corruption in FINE_FOR_SCALARS:
            continue
        if key == "step" and corruption in FINE_FOR_STEP:
            continue
        params, optimizer = prepared(cls, options)
        state = optimizer.state[params[position]]
        if corruption == "missing":
            if "step" not in state:
                continue  # SGD's buffer may be missing: torch starts it then
            del state[key]
        else:
            state[key] = CORRUPTIONS[corruption](state[key])
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError) as caught:
            optimizer.step()
        assert f"group {group}, parameter {index}: '{key}'" in str(caught.value)
        assert "Nothing was changed" in str(caught.value)
        assert_unchanged(optimizer, before)


STEPPING = [case for case in CASES if "step" in state_keys(*case)]


@pytest.mark.parametrize("step", [float("nan"), -3.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("case", STEPPING, ids=case_id)
def test_step_that_is_no_count(case, step):
    if on_cuda():
        pytest.skip("the host does not wait for a step on the device")
    params, optimizer = prepared(*case)
    optimizer.state[params[1]]["step"].fill_(step)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'step' is .*not a count"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("step", [2.5, 1e30])
@pytest.mark.parametrize("case", STEPPING, ids=case_id)
def test_step_that_only_pow_takes_gets_torchs_answer(case, step):
    if on_cuda():
        pytest.skip("the host does not wait for a step on the device")
    params, optimizer = prepared(*case)
    optimizer.state[params[0]]["step"].fill_(step)
    optimizer.step()
    assert "no whole number" in optimizer.fallback_reason


@pytest.mark.parametrize("cls", FUSED)
@given(data=st.data())
def test_fuzzed_checkpoints(cls, data):
    """Any mix of corruptions: an error that changes nothing, or the step that torch would do."""
    options = data.draw(st.sampled_from([o for c, o in CASES if c is cls]))
    params, optimizer = prepared(cls, options)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for state in checkpoint["state"].values():
        for key in list(state):
            kind = data.draw(st.sampled_from(["fine", "fine", "fine", *CORRUPTIONS]))
            if kind == "fine":
                continue
            value = CORRUPTIONS[kind](state[key])
            if value is None:
                del state[key]
            else:
                state[key] = value
    try:
        optimizer.load_state_dict(copy.deepcopy(checkpoint))
    except Exception:
        return  # torch's own check
    before = snapshot(optimizer)
    try:
        optimizer.step()
    except Exception:
        if optimizer.fallback_reason is None:
            assert_unchanged(optimizer, before)
    else:
        twins = [Parameter(p) for p in before[0]]
        theirs = TORCH[cls]([{"params": twins[:2]}, {"params": twins[2:]}], foreach=False)
        theirs.load_state_dict(checkpoint)
        set_grads(twins, seed=2)
        theirs.step()
        assert_same_values(params, twins, rtol=1e-4, atol=1e-5)


def test_gradient_that_no_longer_fits(optimizer_class):
    """`p.data` replaced by another shape or dtype after backward."""
    for replacement, word in (
        (torch.zeros(7), "shape"),
        (torch.zeros(4, 6, dtype=torch.complex64), "dtype"),
    ):
        param = Parameter(torch.zeros(4, 6))
        other = Parameter(torch.zeros(3))
        optimizer = optimizer_class([{"params": [other]}, {"params": [param]}])
        param.grad, other.grad = torch.ones(4, 6), torch.ones(3)
        param.data = replacement
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=rf"group 1, parameter 0: 'grad' has {word}"):
            optimizer.step()
        assert_unchanged(optimizer, before)


@pytest.mark.parametrize("which", ["param", "grad", "state"])
def test_storage_freed_under_the_tensor(optimizer_class, which):
    """FSDP frees storages by resizing them to 0: the tensor's sizes stay."""
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    param = Parameter(torch.zeros(100))
    optimizer = optimizer_class([param], **options)
    param.grad = torch.ones(100)
    optimizer.step()
    key, state = next(
        (k, v) for k, v in optimizer.state[param].items() if k not in SCALARS[optimizer_class]
    )
    tensor = {"param": param, "grad": param.grad, "state": state}[which]
    tensor.untyped_storage().resize_(40)
    name = key if which == "state" else which
    with pytest.raises(RuntimeError, match=f"'{name}' reaches beyond its storage"):
        optimizer.step()


def test_error_leaves_new_state_out(optimizer_class):
    """All or nothing: a bad last parameter keeps the first ones from getting state."""
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    params = make_params([(3,), (4,)])
    optimizer = optimizer_class(params, **options)
    set_grads(params, seed=0)
    params[1].data = torch.zeros(9)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'grad'"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_errors_name_the_class_that_was_constructed():
    class Mine(fused_optim.AdamW):
        pass

    for cls, name in ((fused_optim.Adam, "Adam"), (fused_optim.AdamW, "AdamW"), (Mine, "AdamW")):
        params = make_params([(3,)])
        optimizer = cls(params, ema_decay=0.5)
        set_grads(params, seed=0)
        optimizer.step()
        optimizer.state[params[0]]["ema"] = torch.zeros(4)
        message = rf"^fused_optim\.{name}: group 0, parameter 0: 'ema' has shape"
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        with pytest.raises(RuntimeError, match=message), optimizer.ema_parameters():
            pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_adagrad_of_a_model_that_changed_its_dtype_after_construction(dtype):
    """Its state is made in the constructor, and stays float32 as in torch."""
    params, others = make_params([(3,), (4, 2)]), make_params([(3,), (4, 2)])
    ours = fused_optim.Adagrad(params)
    theirs = torch.optim.Adagrad(others, foreach=False)
    for p in (*params, *others):
        p.data = p.data.to(dtype)
    for seed in range(3):
        set_grads(params, others, seed=seed)
        ours.step()
        theirs.step()
        assert ours.fallback_reason is None
        assert all(ours.state[p]["sum"].dtype == torch.float32 for p in params)
    # torch rounds what it computes to the half type several times, and the sum of double to float.
    tolerance = {torch.bfloat16: 0.02, torch.float16: 2e-3, torch.float64: 1e-6}[dtype]
    assert_same_values(params, others, tolerance, tolerance)


def test_mangled_groups_get_torchs_answer(optimizer_class):
    param = make_params([(3,)])[0]
    param.grad = torch.ones(3)
    optimizer = optimizer_class([param])
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="lr"):
        optimizer.step()
    optimizer = optimizer_class([param])
    optimizer.param_groups[0]["params"] = (param,)  # a tuple is as good to torch
    before = param.detach().clone()
    optimizer.step()
    assert not torch.equal(param.detach(), before)
    optimizer.param_groups[0]["lr"] = "fast"
    if optimizer_class.__name__ == "Rprop":  # reads it for the first step alone
        del optimizer.state[param]
    with pytest.raises(Exception, match=".+"):
        optimizer.step()


def test_isa_that_does_not_exist():
    import fused_optim._C as _C

    with pytest.raises(RuntimeError, match="unknown instruction set 'mmx'; this build has: base"):
        _C.set_isa("mmx")
