"""Parameters that hold their averages for a while."""

import contextlib
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
        self._optimizer = optimizer
        self.find_pairs = self._find_averages

    def _find_averages(self) -> list[tuple[int, int, Tensor, Any]]:
        """(group, index, parameter, average) of each parameter that has one."""
        optimizer = self._optimizer
        found = {
            p: (number, index, p, optimizer.state[p]["ema"])
            for number, group in enumerate(optimizer.param_groups)
            for index, p in enumerate(group["params"])
            if "ema" in optimizer.state.get(p, {})
        }
        if not found and optimizer.ema_decay is None:
            raise RuntimeError("ema_parameters(): the optimizer was not given an ema_decay")
        return list(found.values())
