"""Python code that runs in a step (finalizers, hyperparameters, keys): nothing freed is read."""

import contextlib
import gc

import pytest
import torch
from hostile import (
    EqualString,
    EqualToAnything,
    Finalizer,
    Number,
    collector_at_each_allocation,
    drop_gradients,
    fresh,
    poison,
)
from torch.nn import Parameter
from twins import TORCH, all_options, assert_same_values, copies, make_params, same_bits, set_grads

import fused_optim

SHAPES = [(7,), (64, 3), (), (1000,), (0,)]


@pytest.fixture
def lists(optimizer_class):
    """A fused optimizer, torch's beside it, with equal gradients."""
    params = make_params(SHAPES, torch.float64)
    others = copies(params)
    set_grads(params, others, seed=0)
    options = all_options(optimizer_class)
    ours = optimizer_class(params, **options)
    return params, others, ours, TORCH[optimizer_class](others, foreach=False, **options)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_finalizer_that_drops_the_gradients(optimizer_class, lists, ema_decay):
    """The first step makes objects, and so lets the collector run finalizers."""
    params, _, ours, theirs = lists
    ours.ema_decay = ema_decay
    before = [p.detach().clone() for p in params]
    with collector_at_each_allocation():
        for _ in range(20):
            Finalizer(lambda: drop_gradients(params))
        ours.step()
    theirs.step()
    if any(not torch.equal(p, q) for p, q in zip(params, before, strict=True)):
        # Else they were dropped before the step began to look.
        assert_same_values(params, theirs.param_groups[0]["params"], rtol=1e-9, atol=1e-9)
        for p in params:
            if ema_decay is not None:
                assert torch.equal(ours.state[p]["ema"], p.detach())


@pytest.mark.parametrize("what", ["param", "grad"])
def test_a_finalizer_that_takes_the_memory_away(optimizer_class, what):
    """As FSDP frees storages, by resizing them: nothing is read that is no longer there."""
    params = make_params([(1000,), (2000,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    if optimizer.state:
        pytest.skip("the constructor makes the state")
    before = [p.detach().clone() for p in params]

    def free():
        tensor = params[1] if what == "param" else params[1].grad
        tensor.untyped_storage().resize_(0)
        poison([2000, 1000])

    with collector_at_each_allocation():
        for _ in range(20):
            Finalizer(free)
        with pytest.raises(RuntimeError, match="other memory while|beyond its storage"):
            optimizer.step()
    assert same_bits(params[0].detach(), before[0])
    assert not any("step" in state for state in optimizer.state.values())


@pytest.mark.parametrize("drop", ["gradients", "params", "groups", "value"])
def test_a_hyperparameter_that_runs_code(optimizer_class, drop):
    params = make_params([(1000,), (3,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params)
    groups = optimizer.param_groups

    def function():
        if drop == "gradients":
            drop_gradients(params)
        elif drop == "params":
            groups[0]["params"] = []
            params.clear()
        elif drop == "groups":
            groups.clear()
        else:
            groups[0]["lr"] = 0.1
        gc.collect()
        poison([1000] * 4)

    groups[0]["lr"] = Number(0.1, function)
    optimizer.step()
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in params)


def test_options_changed_meanwhile_hold_from_the_next_step():
    params = make_params([(1000,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0)

    def function():
        optimizer.max_grad_norm = None
        optimizer.zero_grads = True

    optimizer.param_groups[0]["lr"] = Number(0.1, function)
    optimizer.step()
    assert optimizer.grad_norm is not None and params[0].grad.any()
    optimizer.step()
    assert not params[0].grad.any()


def test_a_hyperparameter_that_writes_an_option_into_its_group():
    """It is read after the group's values, as it is in the group after this one."""
    params = make_params([(300,), (300,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.AdamW([{"params": [p]} for p in params])
    groups = optimizer.param_groups
    for options in ({"state_dtype": torch.bfloat16}, {"max_grad_norm": 1.0}):
        for group in groups:
            group["lr"] = Number(0.1, lambda group=group, options=options: group.update(options))
        if "state_dtype" in options:
            optimizer.step()
            continue
        with pytest.raises(RuntimeError, match="group 0 has max_grad_norm=1.0"):
            optimizer.step()
    for p in params:
        assert optimizer.state[p]["step"] == 1
        assert optimizer.state[p]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["lr", "eps", "betas", "maximize"])
def test_keys_of_groups_that_run_code(name):
    """What a look-up of one value runs frees the others."""
    params = make_params(SHAPES)
    others = copies(params)
    ours = fused_optim.AdamW(params, lr=0.01)
    theirs = TORCH[fused_optim.AdamW](others, lr=0.01, foreach=False)
    set_grads(params, others, seed=0)
    in_their_place = []

    def replace_values():
        EqualString.function = staticmethod(lambda: None)
        for key, value in list(group.items()):
            group[key] = fresh(value)
        in_their_place.extend([1e100 + i for i in range(1000)])

    # Keys and numbers that nobody else has.
    own_key = {name: EqualString(name)}
    group = {own_key.get(key, key): fresh(value) for key, value in ours.param_groups[0].items()}
    ours.param_groups[0] = group
    EqualString.function = staticmethod(replace_values)
    try:
        ours.step()
    finally:
        EqualString.function = staticmethod(lambda: None)
    assert in_their_place
    theirs.step()
    assert_same_values(params, others, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["state", "parameter's state"])
def test_keys_that_run_code(optimizer_class, where):
    params = make_params([(1000,), (3,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    optimizer.step()
    set_grads(params, seed=1)
    name = next(iter(optimizer.state[params[0]]), "momentum_buffer")
    container = optimizer.state if where == "state" else optimizer.state[params[0]]
    key = EqualToAnything(params[0] if where == "state" else name)
    items = dict(container)
    container.clear()
    container[key] = {}
    container.update(items)
    key.function = lambda: drop_gradients(params)
    with contextlib.suppress(Exception):  # torch's own step may well trip over this
        optimizer.step()
    assert "key" in optimizer.fallback_reason
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in params)


def test_keys_that_run_code_in_states_of_nobody():
    """Whether there are averages is asked of all states."""
    params = make_params([(1000,)] * 20)
    set_grads(params, seed=0)
    optimizer = fused_optim.SGD(params, lr=1.0, ema_decay=0.9)
    key = EqualToAnything("ema")
    optimizer.state["other"] = {key: 1}
    key.function = lambda: pytest.fail("was compared")
    optimizer.step()
    assert optimizer.fallback_reason is None


@pytest.mark.parametrize("resize", [True, False])
def test_code_that_runs_while_state_is_linked(resize, monkeypatch):
    """A key that came in while objects were made, and whose comparison takes memory away."""
    p, other = Parameter(torch.zeros(1000)), Parameter(torch.zeros(1))
    p.grad, other.grad = torch.ones(1000), torch.ones(1)
    optimizer = fused_optim.SGD([p, other], lr=1.0, momentum=0.9)
    state = {"other": torch.zeros(1)}
    optimizer.state[p] = state
    key = EqualToAnything("momentum_buffer")

    def take():
        if resize:
            p.grad.untyped_storage().resize_(0)
        else:
            p.data = torch.full((1000,), 5.0)

    def hash_and_put_key_in(tensor):
        state[key] = 1
        key.function = take
        return id(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__hash__", hash_and_put_key_in)
        with pytest.raises(RuntimeError, match="other memory while"):
            optimizer.step()
    key.function = lambda: None
    assert p.detach().unique().tolist() == [0.0 if resize else 5.0]
    assert list(state) == ["other", key] and list(optimizer.state) == [p]
