"""Parameters that hold their averages for a while."""

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["EmaParameters"]


class EmaParameters(_C.ExchangeContext, contextlib.ContextDecorator):
    """The context manager that :meth:`FusedOptimizer.ema_parameters` returns."""

    def __init__(self, optimizer: "FusedOptimizer") -> None:
        super().__init__(optimizer._name, optimizer._fused.exchange)
        # No method of its own: that would be a cycle, which keeps the optimizer's memory.
        self.find_pairs = functools.partial(_find_averages, optimizer)


def _find_averages(optimizer: "FusedOptimizer") -> list[tuple[int, int, Tensor, Any]]:
    """(group, index, parameter, average) of each parameter that has one."""
    found = {
        p: (number, index, p, optimizer.state[p]["ema"])
        for number, group in enumerate(optimizer.param_groups)
        for index, p in enumerate(group["params"])
        if "ema" in optimizer.state.get(p, {})
    }
    if not found and optimizer.ema_decay is None:
        raise RuntimeError("ema_parameters(): the optimizer was not given an ema_decay")
    return list(found.values())
