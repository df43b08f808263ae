"""In which dtypes states and averages are kept: ``state_dtype`` and ``ema_dtype``."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "StateDtypeOption",
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
#: Parameters of these dtypes may have states of each of them.
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


def dtype_or_none(name: str, value: Any) -> torch.dtype | None:
    """The dtype, or ValueError for one that no state is kept in."""
    if value is None or (isinstance(value, torch.dtype) and value in _DTYPES):
        return value
    raise ValueError(f"Invalid {name} value: {value}, not torch.float32 or torch.bfloat16")


def names_like_param(rule: int) -> list[str]:
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
        known = names_like_param(rule)
        if name not in known:
            raise ValueError(
                f"Invalid state_dtype value: {name!r} is not one of the states {known}"
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
        optimizer._fused.has_dtypes = optimizer._fused.has_dtypes or value is not None


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
    dtypes = group.get("state_dtype", optimizer._fused.options.state_dtype)
    found: torch.dtype | None = dtypes.get(name) if isinstance(dtypes, dict) else dtypes
    return found


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
    """Gives groups that are loaded the ``state_dtype`` that this optimizer's own have."""
    for own, group in zip(groups, loaded, strict=False):
        group.pop("state_dtype", None)
        if "state_dtype" in own:
            group["state_dtype"] = own["state_dtype"]
