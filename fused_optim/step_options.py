"""The keyword arguments that every fused optimizer has beyond torch's, as checked attributes."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["StepOption", "at_least_0", "between_0_and_1", "yes_or_no"]


class StepOption:
    """An attribute of an optimizer, kept where the extension reads it.

    Args:
        check: makes the value what it should be, or raises ValueError.
    """

    def __init__(self, check: Callable[[str, Any], Any]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: "FusedOptimizer | None", owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        return getattr(optimizer._step_options or _C.StepOptions(), self.name)

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        value = self.check(self.name, value)
        if optimizer._step_options is None:
            optimizer._step_options = _C.StepOptions()
        setattr(optimizer._step_options, self.name, value)


def _number_from(low: float, high: float, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements
        number = math.nan
    if isinstance(value, str) or not low <= number <= high:
        raise ValueError(f"Invalid {name} value: {value}")
    return number


def at_least_0(name: str, value: Any) -> float | None:
    return _number_from(0, math.inf, name, value)


def between_0_and_1(name: str, value: Any) -> float | None:
    return _number_from(0, 1, name, value)


def yes_or_no(name: str, value: Any) -> bool:
    if value not in (False, True):
        raise ValueError(f"Invalid {name} value: {value}")
    return bool(value)
