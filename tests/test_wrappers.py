"""What an optimizer has beyond torch's is one object: wrappers of the optimizer reach it, groups
can't contradict it, and it is printed."""

import copy
import pickle

import pytest
import torch
from twins import FUSED, make_params, set_grads

import fused_optim

OPTIONS = {"max_grad_norm": 1.0, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.9}


def delegating(optimizer):
    """As LightningOptimizer does it: its class mixes in the optimizer's, and what it has not, it
    asks the optimizer for."""

    class Wrapper:
        def __init__(self, inner):
            self.inner = inner
            self.__class__ = type("W" + type(inner).__name__, (Wrapper, type(inner)), {})

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def step(self, closure=None):
            return self.inner.step(closure)

    return Wrapper(optimizer)


def sharing(optimizer):
    """As it did: with a copy of the optimizer's attributes."""

    class Wrapper:
        def __init__(self, inner):
            self.__dict__ = {k: v for k, v in inner.__dict__.items() if k != "step"}
            self.__class__ = type("W" + type(inner).__name__, (Wrapper, type(inner)), {})
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

    return Wrapper(optimizer)


@pytest.mark.parametrize("wrapped", [delegating, sharing])
def test_a_wrapper_reaches_the_one_optimizer(optimizer_class, wrapped):
    params = make_params([(4,), (2, 3)])
    optimizer = optimizer_class(params)
    wrapper = wrapped(optimizer)
    assert wrapper.max_grad_norm is None and wrapper.grad_norm is None
    wrapper.max_grad_norm = 0.5
    wrapper.ema_decay = 0.9
    assert optimizer.max_grad_norm == 0.5
    set_grads(params, seed=0)
    wrapper.step()
    assert wrapper.grad_norm is optimizer.grad_norm is not None
    assert all("ema" in optimizer.state[p] for p in params)
    with wrapper.ema_parameters(), pytest.raises(RuntimeError, match="ema_parameters"):
        optimizer.step()
    optimizer.skip_nonfinite = True
    assert wrapper.skip_nonfinite
    params[0].grad.fill_(float("nan"))
    wrapper.step()
    assert wrapper.skipped_steps.item() == 1
    assert wrapper._step_supports_amp_scaling


@pytest.mark.parametrize("wrapped", [delegating, sharing])
def test_also_what_it_says_of_torchs_path(wrapped):
    memory = torch.ones(8)
    params = [torch.nn.Parameter(memory[:5]), torch.nn.Parameter(memory[3:])]
    optimizer = fused_optim.SGD(params, lr=0.1)
    wrapper = wrapped(optimizer)
    set_grads(params, seed=0)
    with pytest.warns(UserWarning, match="overlap"):
        optimizer.step()
    assert "overlap" in wrapper.fallback_reason


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_group_are_an_error(optimizer_class, name):
    params = make_params([(4,), (2, 3)])
    with pytest.raises(ValueError, match=f"group 0 has {name}=.*whole optimizer's"):
        optimizer_class([{"params": params, name: OPTIONS[name]}])
    optimizer = optimizer_class(params[:1])
    group = {"params": params[1:], name: OPTIONS[name]}
    with pytest.raises(ValueError, match=f"group 1 has {name}="):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert group == {"params": params[1:], name: OPTIONS[name]}
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0][name] = OPTIONS[name]
    with pytest.raises(ValueError, match=f"group 0 of the state dict has {name}="):
        optimizer.load_state_dict(state_dict)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_group_that_say_the_same_are_dropped(optimizer_class, name):
    params = make_params([(4,), (2, 3)])
    options = {name: OPTIONS[name]}
    optimizer = optimizer_class([{"params": params[:1], **options}], **options)
    optimizer.add_param_group({"params": params[1:], **options})
    assert all(name not in group for group in optimizer.param_groups)
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0][name] = OPTIONS[name]
    optimizer.load_state_dict(state_dict)
    assert all(name not in group for group in optimizer.param_groups)
    assert name in state_dict["param_groups"][0]  # the caller's is as it was


def test_options_are_printed(optimizer_class):
    params = make_params([(4,)])
    plain = optimizer_class(params)
    assert "Step options" not in repr(plain)
    for name, value in OPTIONS.items():
        assert f"{name}: {value}" in repr(optimizer_class(params, **{name: value}))
    plain.max_grad_norm = 2.0
    lines = repr(plain).splitlines()
    assert lines[-3:] == ["Step options", "    max_grad_norm: 2.0", ")"]


class OwnPickle(fused_optim.Adam):
    def __getstate__(self):
        return self.__dict__.copy()


class Bare:
    def __new__(cls, *arguments, **options):
        return object.__new__(cls)


class WithBare(Bare, fused_optim.Adam):
    pass


def by_setstate(optimizer):
    other = object.__new__(type(optimizer))
    other.__setstate__(optimizer.__getstate__())
    return other


def by_class(optimizer):
    other = torch.optim.Adam(optimizer.param_groups[0]["params"])
    other.__class__ = fused_optim.Adam
    return other


@pytest.mark.parametrize("cls", [fused_optim.Adam, OwnPickle, WithBare])
@pytest.mark.parametrize(
    "made",
    [
        copy.copy,
        copy.deepcopy,
        by_setstate,
        by_class,
        *(lambda x, p=p: pickle.loads(pickle.dumps(x, protocol=p)) for p in range(5)),
    ],
)
def test_it_is_there_however_an_optimizer_was_made(cls, made):
    if made is by_setstate and cls is OwnPickle:
        pytest.skip("what it pickles is not for __setstate__ alone")
    optimizer = cls(make_params([(4,)]), max_grad_norm=1.0)
    other = made(optimizer)
    assert other.max_grad_norm == (None if made is by_class else 1.0)
    params = other.param_groups[0]["params"]
    set_grads(params, seed=0)
    other.step()
    assert other.fallback_reason is None


def test_load_hooks_come_first(optimizer_class):
    """They may unwrap what they are given, and see the caller's own type of dict."""
    source = optimizer_class(make_params([(4,)]))
    set_grads(source.param_groups[0]["params"], seed=0)
    source.step()

    class Saved(dict):
        def copy(self):
            return Saved(self)

    seen = []
    optimizer = optimizer_class(make_params([(4,)]))
    optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append(type(s)))
    optimizer.register_load_state_dict_pre_hook(lambda o, s: s["optimizer"])
    optimizer.load_state_dict(Saved(optimizer=source.state_dict()))
    assert seen == [Saved]
    states = [list(o.state.values()) for o in (source, optimizer)]
    assert [set(s) for s in states[0]] == [set(s) for s in states[1]]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_their_own(copied):
    for cls in FUSED:
        optimizer = cls(make_params([(4,)]), max_grad_norm=1.0)
        other = copied(optimizer)
        assert other.max_grad_norm == 1.0 and other._step_supports_amp_scaling
        other.max_grad_norm = None
        assert optimizer.max_grad_norm == 1.0
        assert not other._step_supports_amp_scaling


def test_amp_sees_what_torchs_default_optimizer_shows(optimizer_class):
    params = make_params([(4,)])
    optimizer = optimizer_class(params)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    for name, value in OPTIONS.items():
        assert optimizer_class(params, **{name: value})._step_supports_amp_scaling
        setattr(optimizer, name, value)
        assert optimizer._step_supports_amp_scaling
        setattr(optimizer, name, False if value is True else None)
        assert not optimizer._step_supports_amp_scaling
    if "fused" in optimizer.defaults:
        del optimizer._step_supports_amp_scaling
        fused = optimizer_class(params, fused=True)
        assert fused._step_supports_amp_scaling
        assert not fused_optim.fuse(fused)._step_supports_amp_scaling
