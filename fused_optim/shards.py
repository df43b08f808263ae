"""Optimizers that hold one rank's part of the parameters: what they can't do is what needs all.

ZeroRedundancyOptimizer gives each rank some of the parameters, FullyShardedDataParallel (FSDP1)
some elements of each, all as plain tensors. Clipping by the norm of such a part, skipping where it
is not finite, or zeroing some of a model's gradients would do something else on each rank, and
nobody would be told.
"""

import contextlib
import gc
import math
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fused_optim import _C
from fused_optim.sharding import is_dtensor

if TYPE_CHECKING:
    from fused_optim.norm_across_ranks import NormAcrossRanks
    from fused_optim.norm_plan import NormPlan
    from fused_optim.optimizer import FusedOptimizer
    from fused_optim.own_state import OwnState
    from fused_optim.told_later import ToldLater

__all__ = [
    "constructed_by",
    "keeping_what_is_told",
    "norm_across_ranks",
    "owned_by",
    "readable_placements",
    "refuse_for_a_shard",
    "tell_failure",
]

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
_ZERO_CLASS = "ZeroRedundancyOptimizer"
_FSDP1 = "torch.distributed.fsdp._flat_param"
#: What FSDP1 sets on flat parameters and on the original ones whose memory lies in them.
_FSDP1_MARK = "_fsdp_flattened"


def constructed_by() -> str | None:
    """Who constructs this optimizer for its rank's share of the parameters, None if nobody does.

    To be called from the optimizer's constructor: nothing else in the optimizer tells.
    """
    if _ZERO not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        is_zeros = frame.f_globals.get("__name__") == _ZERO
        if is_zeros and frame.f_code.co_name == "_init_local_optimizer":
            break
        frame = frame.f_back
    if frame is None or getattr(frame.f_locals.get("self"), "world_size", 2) == 1:
        return None
    return _ZERO_CLASS


def owned_by(optimizer: Optimizer) -> str | None:
    """The same of an optimizer that exists: who has it as its rank's share."""
    if _ZERO not in sys.modules:
        return None
    zero = getattr(sys.modules[_ZERO], _ZERO_CLASS)
    for owner in gc.get_objects():
        if type(owner) is zero and vars(owner).get("optim") is optimizer and owner.world_size > 1:
            return _ZERO_CLASS
    return None


def refuse_for_a_shard(optimizer: "FusedOptimizer", what: str, needs_norm: bool = False) -> None:
    """Raises RuntimeError if the optimizer is one rank's share of another one.

    Args:
        what (str): is refused.
        needs_norm (bool): a ``norm_group`` makes it whole.
    """
    fused = optimizer._fused
    if fused.sharded_by is None or (needs_norm and fused.norm_group is not None):
        return
    cure = ", or pass norm_group, the process group of those ranks" if needs_norm else ""
    raise RuntimeError(
        f"fused_optim.{optimizer._name}: {what} within {fused.sharded_by}, where each rank's "
        "optimizer sees its own share of the parameters alone. All ranks have all gradients: clip "
        f"(torch.nn.utils.clip_grad_norm_) and zero them around the step{cure}"
    )


def norm_across_ranks(optimizer: "FusedOptimizer") -> "NormAcrossRanks | None":
    """The norm of a step whose gradients other ranks have parts of; None if nobody has.

    Raises:
        RuntimeError: if parameters are one rank's plain shards, and nothing says whose others are.
    """
    if optimizer._fused.norm_group is None:
        refuse_for_a_shard(optimizer, "max_grad_norm or skip_nonfinite", needs_norm=True)
    params = [p for own in optimizer.param_groups for p in own["params"]]
    placements, has_plain = _C.placements_of_params(params)
    if has_plain and optimizer._fused.norm_group is None:
        _check_no_part_of_fsdp1(optimizer)
    across_ranks = _made(optimizer, params, placements)
    if across_ranks is not None:
        across_ranks.check_group()
    return across_ranks


def tell_failure(optimizer: "FusedOptimizer") -> None:
    """Tells the ranks that wait for this one's part of a norm that its step has failed.

    Whatever it was that failed, also where it was the making of that norm, and nothing else is
    raised for it, but what Ctrl-C raises afterwards.
    """
    if not optimizer._fused.options.needs_norm:
        return
    with _C.SignalsLater(), contextlib.suppress(Exception):
        across_ranks = _made_anyhow(optimizer)
        if across_ranks is not None:
            with keeping_what_is_told(optimizer._fused, across_ranks):
                across_ranks.tell_failure()


@contextlib.contextmanager
def keeping_what_is_told(
    own: "OwnState", across_ranks: "NormAcrossRanks"
) -> "Iterator[ToldLater | None]":
    """Inside, an exchange is made; gives what a device has told of the one before.

    What it tells of this one is for the next step, also on a rank that has failed in this: there
    all ranks raise, none steps alone. Where a rank has failed in the step before, all raise in this
    one, each telling the others, and then nothing is left to be told.
    """
    told, own.told_later = own.told_later, None
    try:
        yield told
    finally:
        if told is None or not told.says_failed():
            own.told_later = across_ranks.told_later


def _made_anyhow(optimizer: "FusedOptimizer") -> "NormAcrossRanks | None":
    try:
        params = [p for own in optimizer.param_groups for p in own["params"]]
        if not all(isinstance(p, Tensor) for p in params):
            raise TypeError("a parameter is no tensor")
        return _made(optimizer, params, readable_placements(params))
    except Exception:
        # Where that can't be read, the ranks of the norm before wait.
        plan = optimizer._fused.norm_plan
        return None if plan is None else _by_plan(optimizer, plan)


def readable_placements(params: list[Tensor]) -> list[Any]:
    """Of parameters that may be placed in a way that has no norm, at least their meshes."""
    try:
        return _C.placements_of_params(params)[0]
    except Exception:
        sharded: list[Any] = [p for p in params if is_dtensor(p)]
        return [(p._spec.mesh, 0) for p in sharded]


def _made(
    optimizer: "FusedOptimizer", params: list[Tensor], placements: list[Any]
) -> "NormAcrossRanks | None":
    options, group = optimizer._fused.options, optimizer._fused.norm_group
    if not placements and (group is None or group.size() == 1):
        return None
    if _C.has_meta(params):  # where there is no norm
        return None
    from fused_optim.norm_plan import NormPlan

    device = params[0].device if params else torch.device("cpu")
    asked = (options.max_grad_norm, options.skip_nonfinite)
    plan = optimizer._fused.norm_plan
    if plan is None or plan.key != NormPlan.key_of(placements, group, device, asked):
        plan = optimizer._fused.norm_plan = NormPlan(placements, group, device, asked)
    return _by_plan(optimizer, plan)


def _by_plan(optimizer: "FusedOptimizer", plan: "NormPlan") -> "NormAcrossRanks":
    from fused_optim.norm_across_ranks import NormAcrossRanks

    norm_type = math.inf if optimizer._fused.options.max_grad_norm is None else 2.0
    found_inf = getattr(optimizer, "found_inf", None)
    return NormAcrossRanks(optimizer._name, plan, norm_type, found_inf)


def _check_no_part_of_fsdp1(optimizer: "FusedOptimizer") -> None:
    """Raises RuntimeError if a parameter is one rank's part of an FSDP1 parameter, which is a plain
    tensor."""
    if _FSDP1 not in sys.modules or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_world_size() == 1:
        return
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            # Of its own: a Python object that lacks an attribute takes microseconds to say so.
            if vars(param).get(_FSDP1_MARK, False):
                raise RuntimeError(
                    f"fused_optim.{optimizer._name}: group {number}, parameter {index}: "
                    "max_grad_norm or skip_nonfinite with FullyShardedDataParallel. Each rank "
                    "would clip or skip by the norm of its own part. Clip the gradients before the "
                    "step instead, with FullyShardedDataParallel.clip_grad_norm_, or pass "
                    "norm_group, the process group over which the parameters are sharded"
                )
