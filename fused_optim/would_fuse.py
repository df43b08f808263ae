"""``python -m fused_optim info script``: do its optimizers step on the kernels, or why not?"""

import collections
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fused_optim import _C
from fused_optim.convert import fuse
from fused_optim.optimizer import FusedOptimizer
from fused_optim.step_options import remove_written_step_options
from fused_optim.stepping import general_fallback

__all__ = ["main", "why_not"]

_KERNELS = "the fused kernels"


def main(start: Callable[[str, list[str]], None], arguments: list[str]) -> None:
    """Says it of ``script.py:factory``, or of a script that is run with its arguments.

    Args:
        start: runs a script, as :func:`fused_optim.script.run`.
        arguments: the script or factory, and its own command-line arguments.
    """
    path, colon, factory = arguments[0].rpartition(":")
    if colon and not os.path.exists(arguments[0]):
        for optimizer in _optimizers_of(path, factory):
            print(f"{type(optimizer).__name__}: {_answer(optimizer)}")
        return
    counts = _Counts()
    hook = register_optimizer_step_post_hook(counts)
    try:
        start(arguments[0], arguments[1:])
    finally:
        hook.remove()
        print(counts.text(), file=sys.stderr)


class _Counts:
    """How often which optimizer stepped how."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[Optimizer, collections.Counter[str]]] = {}

    def __call__(self, optimizer: Optimizer, *unused: Any) -> None:
        _, counter = self.steps.setdefault(id(optimizer), (optimizer, collections.Counter()))
        if isinstance(optimizer, FusedOptimizer):
            counter[optimizer.fallback_reason or _KERNELS] += 1
        else:
            counter[f"{type(optimizer).__module__} has no fused counterpart"] += 1

    def text(self) -> str:
        lines = [
            f"fused_optim: {type(optimizer).__name__}: {count} steps on {how}"
            if how == _KERNELS
            else f"fused_optim: {type(optimizer).__name__}: {count} steps by torch's own: {how}"
            for optimizer, counter in self.steps.values()
            for how, count in counter.items()
        ]
        return "\n".join(lines) or "fused_optim: no optimizer has made a step"


def _optimizers_of(path: str, factory: str) -> list[Optimizer]:
    """What the function of this name in the script at this path returns."""
    spec = importlib.util.spec_from_file_location("script", path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        sys.exit(f"python -m fused_optim info: no Python script at {path!r}")
    # Under its name from the start: dataclasses and pickle look there.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    if not callable(getattr(module, factory, None)):
        sys.exit(f"python -m fused_optim info: {path!r} has no function {factory!r}")
    made = getattr(module, factory)()
    items = made.values() if isinstance(made, dict) else made
    items = list(items) if isinstance(items, Iterable) else [items]
    optimizers = [item for item in items if isinstance(item, Optimizer)]
    if not optimizers:  # beside schedulers they may be
        name = type(made).__name__
        sys.exit(f"python -m fused_optim info: {factory}() returned {name}, no optimizer")
    return optimizers


def _answer(optimizer: Optimizer) -> str:
    try:
        reason = why_not(optimizer)
    except TypeError as error:
        return f"would not fuse: {error}"
    except RuntimeError as error:
        return f"would fail: {error}"
    return "would fuse" if reason is None else f"would take torch's own step: {reason}"


def why_not(optimizer: Optimizer) -> str | None:
    """Why a step of this optimizer would be torch's own; None if it would run on the kernels.

    Nothing is stepped. Parameters that require gradients and have none get one of zeros for it.

    Raises:
        TypeError: if its class has no fused counterpart.
    """
    if not isinstance(optimizer, FusedOptimizer):
        fuse(optimizer)
    assert isinstance(optimizer, FusedOptimizer)
    remove_written_step_options(optimizer)
    fallback = general_fallback(optimizer)
    if fallback is not None:
        return fallback.reason
    params = [p for group in optimizer.param_groups for p in group["params"]]
    bare = [p for p in params if p.requires_grad and p.grad is None]
    try:
        for p in bare:
            p.grad = torch.zeros_like(p)
        answer = _C.why_not_fused(
            optimizer._rule,
            optimizer._name,
            optimizer.param_groups,
            optimizer.state,
            optimizer._fused.options,
        )
        return None if answer is None else answer[0]
    finally:
        for p in bare:
            p.grad = None
