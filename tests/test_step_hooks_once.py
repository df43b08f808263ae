"""Hooks run once in a step, whatever class the optimizer is of, and however it came to it."""

import copy
import functools
import pickle
import warnings

import pytest
import torch
from step_log import KINDS, Log, Own, stepped
from torch.optim import Optimizer, lr_scheduler
from twins import make_params

import fused_optim


def once(optimizer, register, steps=1):
    """Asserts that each hook runs once in a step of this optimizer, with and without pre hooks."""
    for kinds in (KINDS, KINDS[2:], ()):
        log = Log(optimizer)
        handles = [register(kind, optimizer, log.hook(kind)) for kind in kinds]
        optimizer.step()
        for handle in handles:
            handle.remove()
        expected = [*(k for k in kinds if "pre" in k), "code", *(k for k in kinds if "post" in k)]
        assert [entry[0] for entry in log] == expected * steps
    del optimizer._optimizer_step_code


class OwnOfOwn(Own):
    def step(self, closure=None):
        return super().step(closure=closure)


class WithoutOwn(Own):
    pass


class Twice(fused_optim.AdamW):
    def step(self, closure=None):
        super().step(closure)
        return fused_optim.AdamW.step(self)


class Wrapping(fused_optim.AdamW):
    @functools.wraps(fused_optim.AdamW.step)  # and with it the mark of a wrapped step
    def step(self, closure=None):
        return super().step(closure)


class ForAnyOptimizer:
    def step(self, closure=None):
        return super().step(closure)


class WithMixin(ForAnyOptimizer, fused_optim.AdamW):
    pass


class AnOptimizerItself(Optimizer):
    def step(self, closure=None):
        return super().step(closure)


class WithTorchsWrapper(AnOptimizerItself, fused_optim.AdamW):
    pass


NESTED = [Own, OwnOfOwn, WithoutOwn, Twice, Wrapping, WithMixin, WithTorchsWrapper]


@pytest.mark.parametrize("base_first", [False, True])
@pytest.mark.parametrize("cls", NESTED)
def test_once_where_a_step_calls_the_one_above(cls, base_first, register):
    if base_first:  # torch's constructors wrap what they construct
        stepped(fused_optim.AdamW)
        AnOptimizerItself(make_params([(3,)]), {})
    optimizer = stepped(cls)
    once(optimizer, register)
    step = cls.step
    once(stepped(cls), register)
    assert cls.step is step  # wrapped once for all
    assert optimizer.fallback_reason is None


def test_step_of_the_class_above_called_by_itself(register):
    """It's no part of another step, so it has hooks: as torch's, once a torch.optim.AdamW was."""
    optimizer = stepped(Own)
    log = Log(optimizer)
    register("own pre", optimizer, log.hook("pre"))
    fused_optim.AdamW.step(optimizer)
    assert [entry[0] for entry in log] == ["pre", "code"]


class OfTorchs(torch.optim.AdamW):
    """A user's class, for fuse()."""


def by_class_assignment():
    optimizer = stepped(torch.optim.AdamW)
    optimizer.__class__ = fused_optim.AdamW
    return optimizer


def by_setstate(cls=fused_optim.AdamW):
    optimizer = object.__new__(cls)
    optimizer.__setstate__(stepped(cls).__getstate__())
    return optimizer


def with_a_step_assigned():
    class Assigned(fused_optim.AdamW):
        pass

    optimizer = stepped(Assigned)
    above = Assigned.step
    Assigned.step = lambda self, closure=None: above(self, closure)
    return optimizer


MADE = {
    "fused": lambda: fused_optim.fuse(stepped(torch.optim.AdamW)),
    "fused subclass": lambda: fused_optim.fuse(stepped(OfTorchs)),
    "class assigned": by_class_assignment,
    "setstate": by_setstate,
    "setstate of a subclass": lambda: by_setstate(type("Mine", (OwnOfOwn,), {})),
    "pickled": lambda: pickle.loads(pickle.dumps(stepped(Own))),
    "copied": lambda: copy.deepcopy(fused_optim.fuse(stepped(OfTorchs))),
    "step assigned": with_a_step_assigned,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_once_however_it_came_to_its_class(make, register):
    optimizer = make()
    once(optimizer, register)
    optimizer.__setstate__(optimizer.__getstate__())
    once(optimizer, register)
    assert optimizer._zero_grad_profile_name.endswith(f"#{type(optimizer).__name__}.zero_grad")


@pytest.mark.parametrize("cls", [fused_optim.AdamW, Own, WithTorchsWrapper])
def test_schedulers_see_the_step(cls, register):
    optimizer = stepped(cls)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once(optimizer, register)
        scheduler.step()
        copied = copy.deepcopy(optimizer)
        lr_scheduler.StepLR(copied, 1)
        once(copied, register)
        lr_scheduler.StepLR(copied, 1)  # a second one
        once(copied, register)
    fresh = stepped(cls)
    scheduler = lr_scheduler.StepLR(fresh, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
