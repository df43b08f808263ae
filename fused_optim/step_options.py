"""The keyword arguments that every fused optimizer has beyond torch's, as checked attributes."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import _C
from fused_optim.shards import refuse_for_a_shard

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "STEP_OPTIONS",
    "NormGroupOption",
    "StepOption",
    "at_least_0",
    "between_0_and_1",
    "has_step_options",
    "remove_step_options",
    "remove_written_step_options",
    "set_options",
    "yes_or_no",
]

#: The options and what each of them is where nothing is asked for.
STEP_OPTIONS: dict[str, Any] = {
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "zero_grads": False,
    "ema_decay": None,
    "ema_dtype": None,
    "rounding_seed": 0,
}

#: Those that must see all gradients, not one rank's share of them.
_OF_ALL_GRADIENTS = ("max_grad_norm", "skip_nonfinite", "zero_grads")


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
        return getattr(optimizer._fused.options, self.name)

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        value = self.check(self.name, value)
        fused = optimizer._fused
        if self.name in _OF_ALL_GRADIENTS and value != STEP_OPTIONS[self.name]:
            refuse_for_a_shard(optimizer, self.name, needs_norm=self.name != "zero_grads")
        setattr(fused.options, self.name, value)
        fused.has_options = fused.options.any
        fused.has_averages = fused.has_averages or fused.options.ema_decay is not None


class NormGroupOption:
    """The attribute ``norm_group``: a process group, which no checkpoint can hold."""

    def __get__(self, optimizer: "FusedOptimizer | None", owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer._fused.norm_group

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        distributed = torch.distributed
        if value is not None and not (
            distributed.is_available() and isinstance(value, distributed.ProcessGroup)
        ):
            raise ValueError(f"Invalid norm_group value: {value}, not a ProcessGroup")
        optimizer._fused.norm_group = value


def set_options(options: _C.StepOptions) -> dict[str, Any]:
    """The options that ask for something, with their values."""
    asked_for_nothing = {
        **STEP_OPTIONS,
        "state_dtype": None,
        "master_bits": None,
        "stochastic_rounding": False,
    }
    values = {name: getattr(options, name) for name in asked_for_nothing}
    return {name: value for name, value in values.items() if value != asked_for_nothing[name]}


def remove_step_options(group: dict[str, Any], optimizer: "FusedOptimizer", what: str) -> None:
    """Takes step options that say what the optimizer's own say out of a parameter group.

    Wrappers (ZeroRedundancyOptimizer) hand the constructor's arguments down into every group.

    Raises:
        ValueError: for others, which no step would look at.
    """
    names = _step_options_in(group)
    _check_step_options(names, group, optimizer, what)
    for name in names:
        del group[name]


def has_step_options(optimizer: "FusedOptimizer") -> bool:
    """Whether a group has step options, which were written into it by hand."""
    return any(_step_options_in(group) for group in optimizer.param_groups)


def remove_written_step_options(optimizer: "FusedOptimizer") -> None:
    """The same, before a step, for what was written into the optimizer's own groups.

    Raises:
        RuntimeError: that names the group. Nothing has been changed.
    """
    found = [_step_options_in(group) for group in optimizer.param_groups]
    for number, (group, names) in enumerate(zip(optimizer.param_groups, found, strict=True)):
        try:
            _check_step_options(names, group, optimizer, f"group {number}")
        except ValueError as error:
            raise RuntimeError(f"{error}. Nothing was changed.") from None
    for group, names in zip(optimizer.param_groups, found, strict=True):
        for name in names:
            del group[name]


def _step_options_in(group: dict[str, Any]) -> set[str]:
    return {*STEP_OPTIONS, "norm_group"} & group.keys()


def _check_step_options(
    names: set[str], group: dict[str, Any], optimizer: "FusedOptimizer", what: str
) -> None:
    for name in names:
        own = getattr(optimizer, name)
        if _says_otherwise(group[name], own):
            raise ValueError(
                f"fused_optim.{optimizer._name}: {what} has {name}={group[name]!r}, but {name} is "
                f"the whole optimizer's, where it is {own!r}: give it to the constructor, or set "
                f"optimizer.{name}"
            )


def _says_otherwise(value: Any, own: Any) -> bool:
    try:
        return bool(value != own)
    except Exception:  # of tensors and arrays
        return True


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
