"""Generated optimizers whose tensors are shared, sliced, expanded, freed or not tensors at all: a
step is torch's, or an error that changes nothing, and no memory but a tensor's own is touched."""

import warnings

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter
from twins import CASES, FUSED, TORCH, assert_same_values, assert_unchanged, on_cuda, snapshot

pytestmark = pytest.mark.skipif(on_cuda(), reason="the host's memory")

SIZE = 6
#: Elements on each side of the memory that views are taken from, which nothing may write.
GUARD = 16


class Memory:
    """Memory that parameters, gradients and states of one optimizer may share."""

    def __init__(self):
        self.array = numpy.linspace(0.5, 1.5, 4 * SIZE + 2 * GUARD, dtype=numpy.float32)
        self.guards = self.array[:GUARD].copy(), self.array[-GUARD:].copy()

    def view(self, kind, at):
        inner = self.array[GUARD + at : GUARD + at + 2 * SIZE]
        whole = torch.from_numpy(inner)
        return {
            "view": whole[:SIZE],
            "sliced": whole[::2],
            "expanded": whole[:1].expand(SIZE),
            "too short": whole[: SIZE - 1],
            "double": whole[:SIZE].double(),
            "own": whole[:SIZE].clone(),
        }[kind]

    def is_intact_around(self):
        around = self.array[:GUARD], self.array[-GUARD:]
        return all((a == b).all() for a, b in zip(self.guards, around, strict=True))


KINDS = ["own", "own", "own", "view", "sliced"]
STATE_KINDS = [*KINDS, "expanded", "too short", "double", "None", "text", "of another"]
places = st.integers(0, 2 * SIZE)
params_drawn = st.lists(st.tuples(st.sampled_from(KINDS), places), min_size=1, max_size=4)
options_drawn = st.fixed_dictionaries(
    {},
    optional={
        "max_grad_norm": st.just(0.5),
        "skip_nonfinite": st.just(True),
        "zero_grads": st.just(True),
        "ema_decay": st.just(0.5),
    },
)


def build(cls, options, memory, drawn, repeats):
    params = [Parameter(memory.view(*kind_and_place)) for kind_and_place in drawn]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of duplicates
        optimizer = cls([p for p in params for _ in range(1 + repeats)], **options)
    return params, optimizer


def set_gradients(params, memory, drawn):
    for p, (kind, place) in zip(params, drawn, strict=True):
        p.grad = None if kind == "None" else memory.view(kind, place)


def corrupt(optimizer, params, memory, data):
    for p in params:
        state = optimizer.state.get(p, {})
        for key in [key for key in state if key not in ("step", "mu_product", "eta", "mu")]:
            kind = data.draw(st.sampled_from(["fine", "fine", "fine", *STATE_KINDS]))
            if kind == "of another":
                state[key] = next(iter(optimizer.state[params[0]].values()))
            elif kind != "fine":
                view = None if kind in ("None", "text") else memory.view(kind, data.draw(places))
                state[key] = "text" if kind == "text" else view


@pytest.mark.parametrize("cls", FUSED)
@given(data=st.data())
def test_generated_states(cls, data):
    options = data.draw(st.sampled_from([o for c, o in CASES if c is cls]))
    asked = data.draw(options_drawn)
    drawn = data.draw(params_drawn)
    grads = [
        (data.draw(st.sampled_from([*KINDS, "expanded", "None"])), data.draw(places)) for _ in drawn
    ]
    memory = Memory()
    repeats = data.draw(st.sampled_from([0, 0, 0, 1]))
    params, ours = build(cls, {**options, **asked}, memory, drawn, repeats)
    set_gradients(params, memory, grads)
    try:
        ours.step()
        corrupt(ours, params, memory, data)
    except Exception:
        assert memory.is_intact_around()
        return
    before = snapshot(ours)
    try:
        ours.step()
    except Exception:
        if ours.fallback_reason is None:
            assert_unchanged(ours, before)
    assert memory.is_intact_around()
    try:
        with ours.ema_parameters():
            pass
    except RuntimeError as error:
        assert "Nothing was changed" in str(error) or "ema_decay" in str(error)
    assert memory.is_intact_around()


@pytest.mark.parametrize("cls", FUSED)
@given(data=st.data())
def test_generated_sharing_gives_torchs_results(cls, data):
    """Parameters and gradients that overlap in any way, stepped twice."""
    options = data.draw(st.sampled_from([o for c, o in CASES if c is cls]))
    drawn = data.draw(params_drawn)
    grads = [
        (data.draw(st.sampled_from([*KINDS, "expanded", "None"])), data.draw(places)) for _ in drawn
    ]
    repeats = data.draw(st.sampled_from([0, 0, 1]))
    arrays, results = [], []
    for each in (cls, TORCH[cls]):
        memory = Memory()
        own = {} if each is cls else {"foreach": False}
        params, optimizer = build(each, {**options, **own}, memory, drawn, repeats)
        for _ in range(2):
            set_gradients(params, memory, grads)
            optimizer.step()
        arrays.append(torch.from_numpy(memory.array))
        results.append(params)
    assert_same_values(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert_same_values([arrays[0]], [arrays[1]], rtol=1e-4, atol=1e-4)
