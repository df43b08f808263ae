"""What loading a checkpoint does beyond torch's ``load_state_dict``."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.compact import REMAINDER, is_coded
from fused_optim.compact_checkpoints import (
    encode_as_asked,
    remainder_as_kept,
    will_be_coded,
    with_decoded_states,
)
from fused_optim.sharding import local_of
from fused_optim.state_dtype import dtype_after_loading, keep_own_state_dtypes
from fused_optim.tensor_memory import reaches_beyond

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["all_or_nothing", "decoded_states", "keep_saved_dtypes", "last_load_hook"]


@contextlib.contextmanager
def decoded_states(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Inside, state dicts have floats in the place of 8-bit codes before any hook sees them. One
    thread after the other: each changes the hooks, which the other is going through."""

    def decode(_: object, state_dict: dict[str, Any]) -> dict[str, Any]:
        return with_decoded_states(optimizer, state_dict)

    with optimizer._fused.decoding():
        hook = optimizer.register_state_dict_post_hook(decode, prepend=True)
        try:
            yield
        finally:
            hook.remove()


@contextlib.contextmanager
def all_or_nothing(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Gives the optimizer its groups and its state back where loading fails. torch puts others in
    their place, and then comes code that may raise: of subclasses and of hooks."""
    own, fused = optimizer.__dict__, optimizer._fused
    before = {name: own[name] for name in ("param_groups", "state")}
    has_compact, has_dtypes = fused.options.has_compact, fused.has_dtypes
    try:
        yield
    except BaseException:
        own.update(before)
        fused.options.has_compact, fused.has_dtypes = has_compact, has_dtypes
        raise


@contextlib.contextmanager
def last_load_hook(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Notes the state dict that is loaded, as the optimizer's own hooks have left it."""

    def note(_: object, state_dict: dict[str, Any]) -> dict[str, Any]:
        optimizer._fused.loading = state_dict
        return _without_coded(optimizer, state_dict)

    hook = optimizer.register_load_state_dict_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()
        optimizer._fused.loading = None


def keep_saved_dtypes(
    optimizer: "FusedOptimizer", state_dict: dict[str, Any], takes_kernels: bool
) -> None:
    """Gives states, just loaded, the dtype that they were saved in or that is asked for, one after
    the other. torch has given them their parameter's.

    Args:
        state_dict (dict): what is loaded.
        takes_kernels (bool): whether steps run on the kernels.
    """
    moments = dict(_C.moments(optimizer._rule))
    for group, param, _, saved in _saved_states(optimizer, state_dict):
        loaded = optimizer.state.get(param, {})
        for name in saved.keys() & loaded.keys():
            before, now = saved[name], loaded[name]
            if not isinstance(before, Tensor) or not isinstance(now, Tensor):
                continue
            if reaches_beyond(before):
                loaded[name] = before  # for the step to name
                continue
            if will_be_coded(optimizer, group, param, name, before):
                encode_as_asked(optimizer, param, name, before.to(param.device), loaded)
                continue
            if name == REMAINDER:
                _load_remainder(optimizer, group, param, before, loaded)
                continue
            if is_coded(before) and name in moments:
                _load_codes(optimizer, param, name, saved, loaded)
                continue
            if not before.is_floating_point() or not _C.is_readable(local_of(before)):
                continue
            dtype: torch.dtype | None = before.dtype
            if name not in _C.scalar_states(optimizer._rule):
                dtype = dtype_after_loading(optimizer, group, param, name, before, takes_kernels)
            if dtype == torch.int8:  # of a tensor that is small, or doesn't fit, as a step will say
                dtype = None if param.dtype == torch.float64 else torch.float32
            if dtype is not None and dtype != now.dtype:
                loaded[name] = before.to(now.device, dtype, copy=True)
            if loaded[name].dtype != param.dtype and name not in _C.scalar_states(optimizer._rule):
                optimizer._fused.has_dtypes = True


def _load_remainder(
    optimizer: "FusedOptimizer",
    group: dict[str, Any],
    param: Tensor,
    saved: Tensor,
    loaded: dict[str, Any],
) -> None:
    kept = remainder_as_kept(optimizer, group, param, saved)
    if kept is None:
        del loaded[REMAINDER]
        return
    loaded[REMAINDER] = kept
    optimizer._fused.options.has_compact = True


def _load_codes(
    optimizer: "FusedOptimizer",
    param: Tensor,
    name: str,
    saved: dict[str, Any],
    loaded: dict[str, Any],
) -> None:
    """Codes and scales as they are, as no state dict of ours has them: for the step to check."""
    for each in (name, _C.scales_name(name)):
        value = saved.get(each)
        if isinstance(value, Tensor) and _C.is_readable(local_of(value)):
            loaded[each] = value.to(param.device, copy=True)
        elif each in saved:
            loaded[each] = value
    optimizer._fused.options.has_compact = True


def _saved_states(
    optimizer: "FusedOptimizer", state_dict: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Tensor, Any, dict[str, Any]]]:
    """(group as it is once it is loaded, parameter, its key in the state dict, what is saved)."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    keep_own_state_dtypes(optimizer.param_groups, groups)
    for own, group in zip(optimizer.param_groups, groups, strict=False):
        for param, key in zip(own["params"], group["params"], strict=False):
            saved = state_dict["state"].get(key)
            if isinstance(saved, dict):
                yield group, param, key, saved


def _without_coded(optimizer: "FusedOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with empty tensors for what goes into compact formats: torch would make copies
    of all of them, in the parameter's dtype, before the first one is loaded. Likewise for what is
    not within its storage, where torch would read it."""
    states = dict(state_dict["state"])
    beside = {REMAINDER, *(_C.scales_name(name) for name, _ in _C.moments(optimizer._rule))}
    for group, param, key, saved in _saved_states(optimizer, state_dict):
        empty = {
            name: torch.empty(0, device=param.device)
            for name, value in saved.items()
            if will_be_coded(optimizer, group, param, name, value)
            or (
                isinstance(value, Tensor)
                and (name in beside or is_coded(value) or reaches_beyond(value))
            )
        }
        if empty:
            states[key] = {**saved, **empty}
    return {**state_dict, "state": states}
