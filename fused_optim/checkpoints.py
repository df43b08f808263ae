"""What loading a checkpoint does beyond torch's ``load_state_dict``."""

import itertools
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import _C
from fused_optim.step_options import remove_step_options

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["keep_dtype_of_scalar_states", "without_step_options"]


def without_step_options(optimizer: "FusedOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with groups that hold no step options.

    Raises:
        ValueError: where a group has others than the optimizer.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    for number, group in enumerate(groups):
        remove_step_options(group, optimizer, f"group {number} of the state dict")
    return {**state_dict, "param_groups": groups}


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
