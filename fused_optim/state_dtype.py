"""In which dtypes states and averages are kept: ``state_dtype`` and ``ema_dtype``."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.compact import GROUP_OPTIONS, asked_dtype, warn_of_stalling

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "StateDtypeOption",
    "asks_for_codes",
    "check_group_dtypes",
    "check_state_dtype",
    "dtype_after_loading",
    "dtype_or_none",
    "for_param",
    "keep_own_state_dtypes",
    "names_like_param",
    "wanted_dtype",
]

_DTYPES = (torch.float32, torch.bfloat16)
#: States that move as averages do may be in 8-bit codes, too.
_STATE_DTYPES = (*_DTYPES, torch.int8)
#: Parameters of these dtypes may have states of each of them.
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


def dtype_or_none(name: str, value: Any) -> torch.dtype | None:
    """The dtype, or ValueError for one that no state is kept in."""
    if value is None or (isinstance(value, torch.dtype) and value in _DTYPES):
        return value
    raise ValueError(f"Invalid {name} value: {value}, not torch.float32 or torch.bfloat16")


def _state_dtype_or_none(name: str, value: Any) -> torch.dtype | None:
    if value is None or (isinstance(value, torch.dtype) and value in _STATE_DTYPES):
        return value
    raise ValueError(
        f"Invalid {name} value: {value}, not torch.float32, torch.bfloat16 or torch.int8"
    )


def names_like_param(rule: int) -> list[str]:
    """The states of the parameter's shape."""
    return [name for name, _, is_one_element in _C.states(rule) if not is_one_element]


def check_state_dtype(rule: int, value: Any) -> torch.dtype | dict[str, torch.dtype] | None:
    """What a user gave for ``state_dtype``, a dict as a copy.

    Raises:
        ValueError: unless it is None, torch.float32, torch.bfloat16, torch.int8, or a dict of these
            by names of states of the parameter's shape; and for torch.int8 where a state can't
            have it.
    """
    if not isinstance(value, dict):
        dtype = _state_dtype_or_none("state_dtype", value)
        _check_has_codes(rule, [s for s in _always_on(rule) if dtype == torch.int8])
        return dtype
    for name, dtype in value.items():
        known = names_like_param(rule)
        if name not in known:
            raise ValueError(
                f"Invalid state_dtype value: {name!r} is not one of the states {known}"
            )
        if dtype is None:
            raise ValueError(f"Invalid state_dtype value: {name!r} is None")
        _state_dtype_or_none(f"state_dtype[{name!r}]", dtype)
        _check_has_codes(rule, [name] if dtype == torch.int8 else [])
    return {str(name): dtype for name, dtype in value.items()}


def _always_on(rule: int) -> list[str]:
    return [name for name, enabled_by, is_one in _C.states(rule) if not is_one and not enabled_by]


def _check_has_codes(rule: int, names: list[str]) -> None:
    """Those that only an option of a group's switches on are checked by the step."""
    known = [name for name, _ in _C.moments(rule)]
    for name in names:
        if name not in known:
            raise ValueError(
                f"Invalid state_dtype value: torch.int8, which {name!r} can't have, as its "
                f"dynamics in 8 bits are not known; these can: {known}"
            )


def asks_for_codes(value: Any) -> bool:
    """Whether a state_dtype, checked, has torch.int8 in it."""
    return torch.int8 in (value.values() if isinstance(value, dict) else (value,))


class StateDtypeOption:
    """The attribute of an optimizer, kept where the extension reads it."""

    def __get__(self, optimizer: "FusedOptimizer | None", owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        return optimizer._fused.options.state_dtype

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        value = check_state_dtype(optimizer._rule, value)
        optimizer._fused.options.state_dtype = value
        optimizer._fused.options.has_compact |= asks_for_codes(value)
        optimizer._fused.has_dtypes = optimizer._fused.has_dtypes or value is not None
        if "param_groups" in optimizer.__dict__:
            warn_of_stalling(optimizer)


def check_group_dtypes(optimizer: "FusedOptimizer") -> None:
    """Throws for what was written into a group by hand and is no ``state_dtype``.

    Raises:
        RuntimeError: that names the group.
    """
    for number, group in enumerate(optimizer.param_groups):
        try:
            check_state_dtype(optimizer._rule, group.get("state_dtype"))
        except ValueError as error:
            raise RuntimeError(
                f"fused_optim.{optimizer._name}: group {number}: {error}. Nothing was changed."
            ) from None


def wanted_dtype(
    optimizer: "FusedOptimizer", group: dict[str, Any], name: str
) -> torch.dtype | None:
    """The dtype that is asked for of a state, an average included; None where none is."""
    if name == "ema":
        return optimizer._fused.options.ema_dtype
    if name not in names_like_param(optimizer._rule):
        return None
    return asked_dtype(optimizer, group, name)


def for_param(param: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of a state of this parameter, complex where that is; None where there is none."""
    if not param.is_complex():
        return dtype
    return torch.complex64 if dtype == torch.float32 else None


def dtype_after_loading(
    optimizer: "FusedOptimizer",
    group: dict[str, Any],
    param: Tensor,
    name: str,
    saved: Tensor,
    takes_kernels: bool,
) -> torch.dtype | None:
    """The dtype that a state of the parameter's shape has once it is loaded; None for torch's own
    choice, the parameter's.

    Args:
        takes_kernels (bool): whether steps run on the kernels; torch's own needs the parameter's
            dtype.
    """
    if name != "ema" and name not in names_like_param(optimizer._rule):
        return None
    if not param.is_floating_point() or saved.layout != torch.strided:
        return None
    wanted = wanted_dtype(optimizer, group, name)
    if wanted is not None:
        return wanted
    is_kept = param.dtype in _KEPT and saved.dtype in _KEPT
    return saved.dtype if is_kept and (takes_kernels or name == "ema") else None


def keep_own_state_dtypes(groups: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> None:
    """Gives groups that are loaded what this optimizer's own have of ``state_dtype`` and of the
    other options for how a group's tensors are kept."""
    for own, group in zip(groups, loaded, strict=False):
        for name in ("state_dtype", *GROUP_OPTIONS):
            group.pop(name, None)
            if name in own:
                group[name] = own[name]
