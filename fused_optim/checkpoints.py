"""What loading a checkpoint does beyond torch's ``load_state_dict``."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import _C
from fused_optim.compact import (
    REMAINDER,
    encode_as_asked,
    is_coded,
    tensor_as_kept,
    with_decoded_states,
)
from fused_optim.state_dtype import dtype_after_loading

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["decoded_states", "keep_saved_dtypes", "last_load_hook"]


@contextlib.contextmanager
def decoded_states(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Inside, state dicts have floats in the place of 8-bit codes before any hook sees them."""

    def decode(_: object, state_dict: dict[str, Any]) -> dict[str, Any]:
        return with_decoded_states(optimizer, state_dict)

    hook = optimizer.register_state_dict_post_hook(decode, prepend=True)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def last_load_hook(optimizer: "FusedOptimizer") -> Iterator[None]:
    """Notes the state dict that is loaded, as the optimizer's own hooks have left it."""

    def note(_: object, state_dict: dict[str, Any]) -> None:
        optimizer._fused.loading = state_dict

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
    saved_ids = itertools.chain(*(group["params"] for group in state_dict["param_groups"]))
    for (group, param), saved_id in zip(_groups_of_params(optimizer), saved_ids, strict=False):
        saved = state_dict["state"].get(saved_id, {})
        loaded = optimizer.state.get(param, {})
        for name in saved.keys() & loaded.keys() if isinstance(saved, dict) else ():
            before, now = saved[name], loaded[name]
            if not isinstance(before, torch.Tensor) or not isinstance(now, torch.Tensor):
                continue
            if name == REMAINDER or is_coded(before):
                loaded[name] = tensor_as_kept(before, now.device)
                optimizer._fused.options.has_compact = True
                continue
            if not before.is_floating_point() or before.is_meta:
                continue
            dtype: torch.dtype | None = before.dtype
            if name not in _C.scalar_states(optimizer._rule):
                dtype = dtype_after_loading(optimizer, group, param, name, before, takes_kernels)
            if dtype == torch.int8:
                encode_as_asked(optimizer, param, name, before.to(now.device), loaded)
                continue
            if dtype is not None and dtype != now.dtype:
                loaded[name] = before.to(now.device, dtype, copy=True)
            if loaded[name].dtype != param.dtype and name not in _C.scalar_states(optimizer._rule):
                optimizer._fused.has_dtypes = True


def _groups_of_params(
    optimizer: "FusedOptimizer",
) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, param
