"""Checkpoints of sharded optimizers: between torch's class and ours, on other numbers of ranks."""

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import Ranks
from sharded import SHAPES, assert_same, line, make, set_grads, snapshot
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from twins import TORCH

import fused_optim

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def ranks():
    started = {world: Ranks(world) for world in (1, 2, 4)}
    yield started
    for each in started.values():
        each.stop()


class Model(torch.nn.Module):
    """The parameters under names, as a checkpoint has them."""

    def __init__(self, params):
        super().__init__()
        for i, p in enumerate(params):
            self.register_parameter(f"p{i}", p)


def new(cls, options):
    model = Model(make(line(), SHAPES)[0])
    return model, cls([*model.parameters()], **options)


def class_of(name, torchs):
    fused = getattr(fused_optim, name)
    return TORCH[fused] if torchs else fused


def options_of(name, ema, torchs):
    options = {"lr": 0.01, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}
    return {**options, **({"ema_decay": 0.5} if ema and not torchs else {})}


def step(model, optimizer, seeds):
    for seed in seeds:
        set_grads([*model.parameters()], seed=seed)
        optimizer.step()


def save(path, name, ema, torchs, flatten):
    model, optimizer = new(class_of(name, torchs), options_of(name, ema, torchs))
    step(model, optimizer, (1, 2))
    flat = StateDictOptions(flatten_optimizer_state_dict=flatten)
    states = get_optimizer_state_dict(model, optimizer, options=flat)
    dcp.save({"model": model.state_dict(), "optim": states}, checkpoint_id=path)


def load(path, name, ema, torchs, flatten):
    """Goes on as the one that was saved does, which is stepped here from the start."""
    model, optimizer = new(class_of(name, torchs), options_of(name, ema, torchs))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    before = [p.to_local().clone() for p in model.parameters()]
    flat = StateDictOptions(flatten_optimizer_state_dict=flatten)
    states = get_optimizer_state_dict(model, optimizer, options=flat)
    # The step with a learning rate of 0 that makes the states has left the parameters alone.
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.to_local(), value)
    loaded = {"model": model.state_dict(), "optim": states}
    dcp.load(loaded, checkpoint_id=path)
    model.load_state_dict(loaded["model"])
    set_optimizer_state_dict(model, optimizer, loaded["optim"], options=flat)
    twin_model, twin = new(class_of(name, False), options_of(name, ema, False))
    step(twin_model, twin, (1, 2, 3))
    step(model, optimizer, (3,))
    if not torchs:
        assert optimizer.fallback_reason is None
    mine, expected = snapshot(optimizer), snapshot(twin)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert [name for name, _ in one[1:]] == [name for name, _ in other[1:]]
        for (_, a), (_, b) in zip(one[1:], other[1:], strict=True):
            torch.testing.assert_close(a, b)


CASES = [
    ("AdamW", True, False, False),
    ("NAdam", False, False, True),
    ("RMSprop", True, True, False),
    ("ASGD", False, False, False),
    ("SGD", False, True, True),
    ("Lion", True, False, True),
]


@pytest.mark.parametrize(("name", "ema", "torchs", "flatten"), CASES)
def test_saved_on_two_ranks(ranks, name, ema, torchs, flatten):
    """`torchs`: torch's class saves, ours loads."""
    ema = ema and not torchs
    with tempfile.TemporaryDirectory() as path:
        ranks[2].run(save, path, name, ema, torchs, flatten)
        for world in (1, 2, 4):
            ranks[world].run(load, path, name, ema, False, flatten)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
def test_torchs_class_loads_ours(ranks, name):
    with tempfile.TemporaryDirectory() as path:
        ranks[2].run(save, path, name, False, False, False)
        ranks[4].run(load, path, name, False, True, False)


def steps_on_after_loading():
    """What is loaded is placed as its parameter is, by an equal spec: the kernels take it."""
    model, optimizer = new(fused_optim.AdamW, {"lr": 0.01, "max_grad_norm": 0.5})
    step(model, optimizer, (1, 2))
    states = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, states)
    for p in model.parameters():
        assert isinstance(optimizer.state[p]["exp_avg"], DTensor)
    step(model, optimizer, (3,))
    assert optimizer.fallback_reason is None
    twin_model, twin = new(fused_optim.AdamW, {"lr": 0.01, "max_grad_norm": 0.5})
    step(twin_model, twin, (1, 2, 3))
    assert_same(snapshot(optimizer), snapshot(twin))
    assert dist.get_world_size() == 2


def test_set_optimizer_state_dict(ranks):
    ranks[2].run(steps_on_after_loading)


def keeps_dtypes():
    model, optimizer = new(fused_optim.AdamW, {"lr": 0.01, "state_dtype": torch.bfloat16})
    step(model, optimizer, (1, 2))
    other_model, other = new(fused_optim.AdamW, {"lr": 0.01})
    with torch.no_grad():
        for p, q in zip(other_model.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in other_model.parameters():
        assert other.state[p]["exp_avg"].dtype == torch.bfloat16
    step(model, optimizer, (3,))
    step(other_model, other, (3,))
    assert other.fallback_reason is None
    assert_same(snapshot(other), snapshot(optimizer))


def test_state_dtypes(ranks):
    ranks[2].run(keeps_dtypes)
