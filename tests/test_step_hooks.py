"""Hooks around a step, as torch runs them: which, in which order, with what."""

import itertools

import pytest
import torch
from step_log import KINDS, PAIR, Log, Own, both, stepped
from twins import TORCH

import fused_optim


def loss():
    return 3.0


CALLS = {
    "plain": lambda o: o.step(),
    "closure": lambda o: o.step(loss),
    "keyword": lambda o: o.step(closure=loss),
    "by the class": lambda o: type(o).step(o, loss),
    "no such argument": lambda o: o.step(clothes=loss),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_order_and_arguments(optimizer_class, call, register):
    for count in range(len(KINDS) + 1):
        for kinds in itertools.combinations(KINDS, count):

            def run(log, optimizer, kinds=kinds):
                handles = [register(kind, optimizer, log.hook(kind)) for kind in kinds]
                log.attempt(lambda: call(optimizer))
                for handle in handles:
                    handle.remove()

            theirs, ours = both(run, (TORCH[optimizer_class], optimizer_class))
            if call is CALLS["no such argument"]:  # "AdamW.step() got ...": the class differs
                theirs, ours = theirs[:-1], ours[:-1]
                assert len(ours) == len([kind for kind in kinds if "pre" in kind])
            assert ours == theirs


@pytest.mark.parametrize("kind", ["own pre", "global pre"])
def test_changed_arguments_reach_the_step_and_later_hooks(kind, register):
    def run(log, optimizer):
        def by_name(o, args, kwargs):
            return (o,), {"closure": loss}

        handle = register(kind, optimizer, log.hook("changes", by_name))
        register("own pre", optimizer, log.hook("later"))
        register("own post", optimizer, log.hook("after"))
        log.attempt(optimizer.step)
        handle.remove()

    theirs, ours = both(run)
    assert ours == theirs
    assert ours[-1][:2] == ("returned", (3.0,))
    assert ours[-2][2] == {"closure": loss}


@pytest.mark.parametrize("wrong", [5, [], (1, 2, 3), ()], ids=str)
def test_wrong_result_of_a_hook(wrong, register):
    def run(log, optimizer):
        register("own pre", optimizer, log.hook("pre", lambda *_: wrong))
        log.attempt(optimizer.step)

    theirs, ours = both(run)
    assert ours == theirs
    assert ours[-1][0].startswith("RuntimeError")


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("place", [*KINDS, "closure"])
def test_hook_that_is_registered_during_the_step(place, new, register):
    """Pre hooks in time for the next step, post hooks for this one; or torch's error."""

    def run(log, optimizer):
        handles = []

        def bring(*unused):
            if not handles:
                handles.append(register(new, optimizer, log.hook("brought")))

        if place != "closure":
            handle = register(place, optimizer, lambda *_: bring())
        for _ in range(2):
            log.attempt(lambda: optimizer.step(bring if place == "closure" else None))
        if place != "closure":
            handle.remove()
        for brought in handles:
            brought.remove()

    theirs, ours = both(run)
    assert ours == theirs
    assert any(entry[0] == "brought" for entry in ours)


def fail(*unused):
    raise ValueError("no")


@pytest.mark.parametrize("place", [*KINDS, "closure"])
def test_exception_during_the_step(place, register):
    def run(log, optimizer):
        if place == "closure":
            log.attempt(lambda: optimizer.step(fail))
        else:
            handle = register(place, optimizer, log.hook(place, fail))
            log.attempt(optimizer.step)
            handle.remove()
        handles = [register(kind, optimizer, log.hook(kind)) for kind in KINDS]
        log.attempt(optimizer.step)  # as if nothing had been
        fused_or_torchs = next(c for c in type(optimizer).__mro__ if c in PAIR)
        log.attempt(lambda: fused_or_torchs.step(optimizer))
        for handle in handles:
            handle.remove()

    stepped(torch.optim.AdamW)  # whose step has hooks of its own from now on
    theirs, ours = both(run)
    assert ours == theirs
    assert len(ours) >= 2 * len(KINDS) + 5
    assert both(run, (torch.optim.AdamW, Own))[1] == theirs


class ClosureFirst(fused_optim.AdamW):
    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


@pytest.mark.parametrize("cls", [fused_optim.AdamW, Own, ClosureFirst])
def test_a_closure_that_steps_the_same_optimizer(cls, register):
    """A step of its own, as in torch."""

    def run(log, optimizer):
        register("own pre", optimizer, log.hook("pre"))
        register("own post", optimizer, log.hook("post"))
        optimizer.step(lambda: optimizer.step())
        optimizer.step()

    theirs, ours = both(run, (torch.optim.AdamW, cls))
    assert ours == theirs
    assert len(ours) == 9


@pytest.mark.parametrize("cls", [fused_optim.AdamW, Own])
def test_a_closure_that_steps_another_optimizer(cls, register):
    other, optimizer = stepped(cls), stepped(cls)
    log = Log(other)
    register("own pre", other, log.hook("pre"))
    register("own post", other, log.hook("post"))
    optimizer.step(other.step)
    assert [entry[0] for entry in log] == ["pre", "code", "post"]
