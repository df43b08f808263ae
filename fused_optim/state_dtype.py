"""In which dtypes states and averages are kept: ``state_dtype`` and ``ema_dtype``."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "StateDtypeOption",
    "check_state_dtype",
    "dtype_after_loading",
    "dtype_or_none",
    "keep_own_state_dtypes",
    "states_for_torch",
    "wanted_dtype",
]

_DTYPES = (torch.float32, torch.bfloat16)
#: Parameters of these dtypes may have states of each of them.
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


def dtype_or_none(name: str, value: Any) -> torch.dtype | None:
    """The dtype, or ValueError for one that no state is kept in."""
    if value is None or (isinstance(value, torch.dtype) and value in _DTYPES):
        return value
    raise ValueError(f"Invalid {name} value: {value}, not torch.float32 or torch.bfloat16")


def _names(rule: int) -> list[str]:
    """The states of the parameter's shape."""
    return [name for name, _, is_one_element in _C.states(rule) if not is_one_element]


def check_state_dtype(rule: int, value: Any) -> torch.dtype | dict[str, torch.dtype] | None:
    """What a user gave for ``state_dtype``, a dict as a copy.

    Raises:
        ValueError: unless it is None, torch.float32, torch.bfloat16, or a dict of these by names of
            states of the parameter's shape.
    """
    if not isinstance(value, dict):
        return dtype_or_none("state_dtype", value)
    for name, dtype in value.items():
        if name not in _names(rule):
            raise ValueError(
                f"Invalid state_dtype value: {name!r} is not one of the states {_names(rule)}"
            )
        if dtype is None:
            raise ValueError(f"Invalid state_dtype value: {name!r} is None")
        dtype_or_none(f"state_dtype[{name!r}]", dtype)
    return {str(name): dtype for name, dtype in value.items()}


class StateDtypeOption:
    """The attribute of an optimizer, kept where the extension reads it."""

    def __get__(self, optimizer: "FusedOptimizer | None", owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        return optimizer._fused.options.state_dtype

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        optimizer._fused.options.state_dtype = check_state_dtype(optimizer._rule, value)


def wanted_dtype(
    optimizer: "FusedOptimizer", group: dict[str, Any], name: str
) -> torch.dtype | None:
    """The dtype that is asked for of a state, an average included; None where none is."""
    if name == "ema":
        return optimizer._fused.options.ema_dtype
    if name not in _names(optimizer._rule):
        return None
    dtypes = group.get("state_dtype", optimizer._fused.options.state_dtype)
    found = dtypes.get(name) if isinstance(dtypes, dict) else dtypes
    return found if found is None else dtype_or_none("state_dtype", found)


def dtype_after_loading(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, name: str, saved: Tensor
) -> torch.dtype | None:
    """The dtype that a state of the parameter's shape has once it is loaded; None for torch's own
    choice, the parameter's."""
    if name != "ema" and name not in _names(optimizer._rule):
        return None
    if not param.is_floating_point() or not saved.is_floating_point():
        return None
    wanted = wanted_dtype(optimizer, group, name)
    if wanted is not None:
        return wanted
    return saved.dtype if param.dtype in _KEPT and saved.dtype in _KEPT else None


def keep_own_state_dtypes(groups: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> None:
    """Gives groups that are loaded the ``state_dtype`` that this optimizer's own have."""
    for own, group in zip(groups, loaded, strict=False):
        group.pop("state_dtype", None)
        if "state_dtype" in own:
            group["state_dtype"] = own["state_dtype"]


@contextlib.contextmanager
def states_for_torch(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Inside, states that are narrower than their parameter have its dtype, exactly, as torch's own
    step needs them; afterwards theirs again, rounded. States that torch makes get the dtype that is
    asked for."""
    narrow = [
        (p.dtype, optimizer.state[p], name, optimizer.state[p][name])
        for p in optimizer.state
        for name in _names(optimizer._rule)
        if isinstance(p, Tensor) and _is_narrow(p, optimizer.state[p].get(name))
    ]
    for dtype, state, name, tensor in narrow:
        state[name] = tensor.to(dtype)
    try:
        yield
        for _, state, name, tensor in narrow:
            tensor.copy_(state[name])
    finally:
        for _, state, name, tensor in narrow:
            state[name] = tensor
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name, tensor in optimizer.state.get(p, {}).items():
                wanted = wanted_dtype(optimizer, group, name)
                if wanted is None or not isinstance(tensor, Tensor) or not p.is_floating_point():
                    continue
                if tensor.dtype != wanted:
                    optimizer.state[p][name] = tensor.to(wanted)


def _is_narrow(param: Tensor, state: Any) -> bool:
    """Whether the parameter's dtype holds every value of the state's."""
    if not isinstance(state, Tensor) or state.dtype == param.dtype:
        return False
    if not state.is_floating_point() or not param.is_floating_point():
        return False
    return torch.promote_types(state.dtype, param.dtype) == param.dtype
