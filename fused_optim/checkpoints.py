"""What loading a checkpoint does beyond torch's ``load_state_dict``."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["keep_dtype_of_scalar_states", "last_load_hook"]


@contextlib.contextmanager
def last_load_hook(optimizer: "FusedOptimizer") -> Iterator[list[dict[str, Any]]]:
    """Collects the state dict that is loaded, as the optimizer's own hooks have left it."""
    loaded: list[dict[str, Any]] = []

    def collect(_: object, state_dict: dict[str, Any]) -> None:
        loaded.append(state_dict)

    hook = optimizer.register_load_state_dict_pre_hook(collect)
    try:
        yield loaded
    finally:
        hook.remove()


def keep_dtype_of_scalar_states(optimizer: "FusedOptimizer", state_dict: dict[str, Any]) -> None:
    """Gives states of one element, just loaded, the dtype that they were saved in."""
    saved_ids = itertools.chain(*(group["params"] for group in state_dict["param_groups"]))
    params = itertools.chain(*(group["params"] for group in optimizer.param_groups))
    for (saved_id, param), name in itertools.product(
        zip(saved_ids, params, strict=False), _C.scalar_states(optimizer._rule)
    ):
        saved = state_dict["state"].get(saved_id, {}).get(name)
        loaded = optimizer.state.get(param, {}).get(name)
        if not isinstance(saved, torch.Tensor) or not isinstance(loaded, torch.Tensor):
            continue
        if not saved.is_floating_point() or saved.is_meta or saved.dtype == loaded.dtype:
            continue
        if torch.equal(saved.to(loaded), loaded):  # not replaced by a hook
            optimizer.state[param][name] = saved.to(loaded.device, copy=True)
