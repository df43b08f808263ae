"""Parameters that hold their averages for a while."""

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fused_optim import _C
from fused_optim.sharding import is_dtensor, local_of
from fused_optim.torch_checks import check_placement, places_of_params

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["EmaParameters"]


class EmaParameters(_C.ExchangeContext, contextlib.ContextDecorator):
    """The context manager that :meth:`FusedOptimizer.ema_parameters` returns."""

    def __init__(self, optimizer: "FusedOptimizer") -> None:
        super().__init__(optimizer._name, optimizer._fused.exchange)
        # No method of its own: that would be a cycle, which keeps the optimizer's memory.
        self.find_pairs = functools.partial(_find_averages, optimizer)


def _find_averages(
    optimizer: "FusedOptimizer",
) -> list[tuple[int, int, Tensor, Any, list[Tensor]]]:
    """(group, index, parameter, average, DTensors around them) of each parameter that has one: of
    DTensors this rank's parts."""
    found = {}
    for place, _, p in places_of_params(optimizer):
        if "ema" not in optimizer.state.get(p, {}):
            continue
        average = optimizer.state[p]["ema"]
        wrappers = []
        if isinstance(average, Tensor):
            check_placement(place, p, average, "ema")
            wrappers = [tensor for tensor in (p, average) if is_dtensor(tensor)]
            average = local_of(average)
        found[p] = (place.group, place.param, local_of(p), average, wrappers)
    if not found and optimizer.ema_decay is None:
        raise RuntimeError("ema_parameters(): the optimizer was not given an ema_decay")
    return list(found.values())
