"""What happens around a step, for comparing torch's optimizers with ours."""

import contextlib
import re

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from twins import make_params

import fused_optim

KINDS = ("global pre", "own pre", "own post", "global post")
PAIR = (torch.optim.AdamW, fused_optim.AdamW)


class Own(fused_optim.AdamW):
    """A user's class whose step calls the fused one."""

    def step(self, closure=None):
        return super().step(closure)


def stepped(cls):
    params = make_params([(3,)])
    params[0].grad = torch.ones_like(params[0])
    return cls(params, lr=0.1)


@contextlib.contextmanager
def registering():
    """A function that registers a hook of one of the kinds; global ones go when it is left."""
    handles = []

    def register(kind, optimizer, hook):
        where, when = kind.split()
        if where == "own":
            return getattr(optimizer, f"register_step_{when}_hook")(hook)
        by_time = {
            "pre": register_optimizer_step_pre_hook,
            "post": register_optimizer_step_post_hook,
        }
        handles.append(by_time[when](hook))
        return handles[-1]

    try:
        yield register
    finally:
        for handle in handles:
            handle.remove()


class Log(list):
    """What happened to one optimizer, in a form that is the same for torch's and ours."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.start = self.param.detach().clone()
        optimizer._optimizer_step_code = lambda: self.note("code")

    @property
    def param(self):
        return self.optimizer.param_groups[0]["params"][0]

    def note(self, what, args=(), kwargs=None):
        shown = tuple("self" if a is self.optimizer else getattr(a, "__name__", a) for a in args)
        done = not torch.equal(self.param, self.start)
        self.append((what, shown, dict(kwargs or {}), "updated" if done else "before"))

    def hook(self, name, result=None):
        def hook(optimizer, args, kwargs):
            assert optimizer is self.optimizer
            self.note(name, args, kwargs)
            return result(optimizer, args, kwargs) if result is not None else None

        return hook

    def attempt(self, call):
        try:
            self.note("returned", (call(),))
        except Exception as error:
            text = re.sub(r"<function .*? at 0x\w+>", "<function>", str(error))
            self.note(f"{type(error).__name__}: {text}")


def both(run, pair=PAIR):
    """What run(log, optimizer) has logged with torch's class and with ours."""
    logs = []
    for cls in pair:
        log = Log(stepped(cls))
        run(log, log.optimizer)
        logs.append(list(log))
    return logs
