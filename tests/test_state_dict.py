"""Checkpoints: both ways with torch.optim, through files, old formats, and bitwise resumption."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn import Parameter
from twins import (
    CASES,
    FUSED,
    SCALARS,
    TORCH,
    Twins,
    assert_same_state,
    assert_same_values,
    case_id,
    copies,
    make_params,
    set_grads,
)

import fused_optim
from fused_optim.optimizer import FUSED_CLASSES


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(cls, options, source):
    """A new optimizer with the source's parameters and state, which has stepped before."""
    params = [p for group in source.param_groups for p in group["params"]]
    new_params = copies(params)
    new = cls(new_params, **options)
    set_grads(new_params, seed=50)
    new.step()
    with torch.no_grad():
        for p, q in zip(new_params, params, strict=True):
            p.copy_(q)
    new.load_state_dict(through_a_file(source.state_dict()))
    return new, new_params


@pytest.mark.parametrize("direction", ["to torch", "from torch", "to itself"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_checkpoints_go_both_ways(case, direction):
    cls, options = case
    twins = Twins(cls, options, dtype=torch.float64)
    twins.step(3)
    source, params = (
        (twins.theirs, twins.torch_params)
        if direction == "from torch"
        else (twins.ours, twins.params)
    )
    new, new_params = resumed(TORCH[cls] if direction == "to torch" else cls, options, source)
    if direction == "to torch":  # which gives scalars another dtype when it loads its own, too
        source, params = resumed(TORCH[cls], options, twins.theirs)
    for seed in range(3):
        set_grads(params, new_params, seed=seed)
        source.step()
        new.step()
    assert getattr(new, "fallback_reason", None) is None
    exact = {"rtol": 0, "atol": 0} if direction == "to itself" else {}
    assert_same_values(new_params, params, **exact)
    assert_same_state(new, source, **exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_resuming_in_other_dtypes_is_exact(optimizer_class, dtype):
    """Scalars too: torch rounds those to a half-precision parameter's dtype."""
    twins = Twins(optimizer_class, {}, dtype=dtype)
    twins.step(3)
    new, new_params = resumed(optimizer_class, {}, twins.ours)
    for seed in range(3):
        set_grads(twins.params, new_params, seed=seed)
        twins.ours.step()
        new.step()
    assert_same_values(new_params, twins.params, rtol=0, atol=0)
    assert_same_state(new, twins.ours, rtol=0, atol=0)


def test_scalars_of_a_checkpoint_that_a_hook_replaces(optimizer_class):
    twins = Twins(optimizer_class, {}, dtype=torch.float64)
    twins.step(3)
    checkpoint, other = twins.ours.state_dict(), copy.deepcopy(twins.ours.state_dict())
    for state in other["state"].values():
        for key in state.keys() & SCALARS[optimizer_class]:
            state[key] += 1
    new = optimizer_class(copies(twins.params))
    new.register_load_state_dict_pre_hook(lambda *_: other)
    new.load_state_dict(checkpoint)
    for index, state in new.state_dict()["state"].items():
        for key in state.keys() & SCALARS[optimizer_class]:
            assert state[key].item() == other["state"][index][key].item()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_state_dict_is_torchs(case):
    """Key for key, groups included, except for foreach, which the twin was given."""
    twins = Twins(*case)
    twins.step(2)
    ours, theirs = twins.ours.state_dict(), twins.theirs.state_dict()
    for group in (*ours["param_groups"], *theirs["param_groups"]):
        group["foreach"] = None
    assert [list(g.items()) for g in ours["param_groups"]] == [
        list(g.items()) for g in theirs["param_groups"]
    ]
    assert [list(s) for s in ours["state"].values()] == [list(s) for s in theirs["state"].values()]
    assert list(twins.ours.state_dict()) == list(theirs)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_copies_continue_identically(case):
    cls, options = case
    for copier in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        params = make_params([(6,), (2, 2)])
        optimizer = cls(params, **options)
        set_grads(params, seed=0)
        optimizer.step()
        other_params, other = copier((params, optimizer))
        public = {name for name in vars(optimizer) if not name.startswith("_")}
        assert public <= set(vars(other))
        for seed in range(3):
            set_grads(params, other_params, seed=seed)
            optimizer.step()
            other.step()
        assert_same_values(params, other_params, rtol=0, atol=0)
        assert_same_state(optimizer, other, rtol=0, atol=0)


@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True)])
def test_named_parameters(optimizer_class, named):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    ours, theirs = (
        optimizer_class(m.named_parameters() if n else m.parameters())
        for m, n in zip((model, other), named, strict=True)
    )
    for m in (model, other):
        m(torch.ones(4, 3)).sum().backward()
    ours.step()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch shares the tensors
    other.load_state_dict(model.state_dict())
    ours.step()
    theirs.step()
    assert_same_values(list(model.parameters()), list(other.parameters()), rtol=0, atol=0)
    if named[0]:
        assert theirs.param_groups[0]["param_names"] == ["weight", "bias"]


def test_old_checkpoints_without_newer_flags_and_with_a_number_as_step(optimizer_class):
    twins = Twins(optimizer_class, {}, dtype=torch.float64)
    twins.step(3)
    old = copy.deepcopy(twins.ours.state_dict())
    for group in old["param_groups"]:
        for flag in ("foreach", "maximize", "capturable", "differentiable", "fused"):
            group.pop(flag, None)
    for state in old["state"].values():
        for key in state.keys() & SCALARS[optimizer_class]:
            state[key] = state[key].item()
    params = copies(twins.params)
    new = optimizer_class(params)
    new.load_state_dict(old)
    for seed in range(3):
        set_grads(params, twins.params, seed=seed)
        new.step()
        twins.ours.step()
    assert new.fallback_reason is None
    assert_same_values(params, twins.params, rtol=0, atol=0)


@pytest.mark.parametrize(
    "flags",
    [
        {"foreach": True},
        {"fused": False},
        {"fused": True},
        {"capturable": True},
        {"differentiable": True},
    ],
)
def test_flags_in_a_checkpoint_do_not_choose_the_implementation(optimizer_class, flags):
    """ultralytics#25375: a checkpoint written elsewhere turned the fused path off."""
    twins = Twins(optimizer_class, {}, dtype=torch.float64)
    twins.step(1)
    checkpoint = copy.deepcopy(twins.ours.state_dict())
    for group in checkpoint["param_groups"]:
        group.update({k: v for k, v in flags.items() if k in group})
    twins.ours.load_state_dict(checkpoint)
    twins.step(2)
    twins.assert_fused()
    assert_same_values(twins.params, twins.torch_params)


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": False}])
def test_flags_of_the_constructor_do(optimizer_class, flags):
    params = make_params([(4,)], torch.float64)
    if not set(flags) <= set(optimizer_class(params).defaults):
        pytest.skip("no such flag in torch's constructor")
    other = copies(params)
    ours, theirs = optimizer_class(params, **flags), TORCH[optimizer_class](other, foreach=False)
    set_grads(params, other, seed=0)
    ours.step()
    theirs.step()
    assert "asked for" in ours.fallback_reason
    assert_same_values(params, other)


def test_adam_and_adamw_exchange_checkpoints():
    pair = (fused_optim.Adam, fused_optim.AdamW)
    for first, second in (pair, pair[::-1]):
        params = make_params([(5,)], torch.float64)
        source = first(params, weight_decay=0.5)
        set_grads(params, seed=0)
        source.step()
        other = copies(params)
        target = second(other, weight_decay=0.5)
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        twin = copies(params)
        theirs = TORCH[second](twin, weight_decay=0.5, foreach=False)
        theirs.load_state_dict(copy.deepcopy(source.state_dict()))
        for seed in range(3):
            set_grads(other, twin, seed=seed)
            target.step()
            theirs.step()
        assert_same_values(other, twin)
        if second is fused_optim.AdamW:
            assert target.param_groups[0]["decoupled_weight_decay"] is True


def test_no_shadow_of_parameters_or_state(optimizer_class):
    """Both may be overwritten in place between steps."""
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    twins = Twins(optimizer_class, options, dtype=torch.float64)
    twins.step(2)
    with torch.no_grad():
        for optimizer, params in ((twins.ours, twins.params), (twins.theirs, twins.torch_params)):
            for p in params:
                p.mul_(0.5)
                for value in optimizer.state[p].values():
                    value.add_(1)
    twins.step(2)
    twins.assert_close()


def test_default_dtype_changed(optimizer_class):
    """torch keeps `step` in float64 where that is the default dtype."""
    torch.set_default_dtype(torch.float64)
    twins = Twins(optimizer_class, {}, dtype=torch.float64)
    twins.step(2)
    twins.assert_close()
    twins.assert_fused()


def test_names_are_torchs():
    for torch_class, cls in FUSED_CLASSES.items():
        assert issubclass(cls, torch_class)
        for other_torch, other in FUSED_CLASSES.items():
            assert issubclass(cls, other) == issubclass(torch_class, other_torch)
        assert cls in FUSED
        if cls is fused_optim.Lion:  # whose parent is this package's, under another name
            continue
        assert cls.__name__ == torch_class.__name__
        assert repr(cls([Parameter(torch.zeros(1))])) == repr(
            torch_class([Parameter(torch.zeros(1))])
        )
