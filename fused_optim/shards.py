"""Optimizers that hold one rank's part of the parameters: what they can't know is the norm.

ZeroRedundancyOptimizer gives each rank some of the parameters, FullyShardedDataParallel (FSDP1)
some elements of each, all as plain tensors. Clipping by the norm of such a part, or skipping where
it is not finite, would do something else on each rank, and nobody would be told.
"""

import sys
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["check_norm_is_whole", "constructed_by", "refuse_norm_of_a_shard"]

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
_FSDP1 = "torch.distributed.fsdp._flat_param"
#: What FSDP1 sets on flat parameters and on the original ones whose memory lies in them.
_FSDP1_MARK = "_fsdp_flattened"

_ADVICE = (
    "Each rank would clip or skip by the norm of its own part. Clip the gradients before the step "
    "instead, with {}"
)


def constructed_by() -> str | None:
    """Who constructs this optimizer for its rank's share of the parameters, None if nobody does.

    To be called from the optimizer's constructor: nothing else in the optimizer tells.
    """
    if _ZERO not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != _ZERO:
        frame = frame.f_back
    if frame is None or getattr(frame.f_locals.get("self"), "world_size", 2) == 1:
        return None
    return "ZeroRedundancyOptimizer"


def refuse_norm_of_a_shard(optimizer: "FusedOptimizer", option: str) -> None:
    """Raises RuntimeError if the optimizer is one rank's share of another one."""
    if optimizer._fused.sharded_by is not None:
        raise RuntimeError(
            f"fused_optim.{optimizer._name}: {option} within {optimizer._fused.sharded_by}. "
            + _ADVICE.format("torch.nn.utils.clip_grad_norm_: all ranks have all gradients")
        )


def check_norm_is_whole(optimizer: "FusedOptimizer") -> None:
    """Raises RuntimeError if a parameter is one rank's part of an FSDP1 parameter."""
    if _FSDP1 not in sys.modules or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_world_size() == 1:
        return
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            if getattr(param, _FSDP1_MARK, False):
                raise RuntimeError(
                    f"fused_optim.{optimizer._name}: group {number}, parameter {index}: "
                    "max_grad_norm or skip_nonfinite with FullyShardedDataParallel. "
                    + _ADVICE.format("FullyShardedDataParallel.clip_grad_norm_")
                )
