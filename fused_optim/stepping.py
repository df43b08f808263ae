"""One step: on the kernels, or by torch's own implementation where they don't take it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import _C
from fused_optim.fallback import ASKED_FOR, OWN_INIT_GROUP, Fallback, note
from fused_optim.own_state import BEGUN, CALLING, PAST_TELLING
from fused_optim.shards import keeping_what_is_told, norm_across_ranks, tell_failure
from fused_optim.step_options import remove_written_step_options
from fused_optim.torch_class import check_graph_capture
from fused_optim.torch_step import torch_step

if TYPE_CHECKING:
    from fused_optim.norm_across_ranks import NormAcrossRanks
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["general_fallback", "step"]


def step(optimizer: "FusedOptimizer", closure: Callable[[], Any] | None) -> Any:
    """Steps the optimizer and returns the closure's loss: see :meth:`FusedOptimizer.step`."""
    fused = optimizer._fused
    fused.stage = BEGUN  # again, where a subclass's step does this twice
    try:
        return _told_step(optimizer, closure)
    except BaseException:
        # Here, since a subclass's step may catch it.
        if fused.stage in (CALLING, BEGUN):
            fused.stage = PAST_TELLING
            tell_failure(optimizer)
        raise
    finally:
        fused.stage = PAST_TELLING


def _told_step(optimizer: "FusedOptimizer", closure: Callable[[], Any] | None) -> Any:
    """The step, past whose telling errors are told by itself."""
    fused = optimizer._fused
    if fused.exchange.is_active:
        raise RuntimeError("step() inside ema_parameters(): the averages would be trained")
    if "capturable" in optimizer.defaults and torch.cuda.is_initialized():
        # CUDA graphs are for optimizers whose groups say capturable=True: torch's own check.
        check_graph_capture(optimizer)
    # First: it may change options and parameters, from which the norm follows.
    loss = None
    if closure is not None:
        fused.stage = CALLING
        with torch.enable_grad():
            loss = closure()
        fused.stage = BEGUN
    across_ranks = norm_across_ranks(optimizer) if fused.options.needs_norm else None
    if across_ranks is None:
        _step(optimizer, None)
        return loss
    # Ctrl-C is raised once the step is done, as it is on the other ranks.
    with _C.SignalsLater():
        fused.stage = PAST_TELLING
        with keeping_what_is_told(fused, across_ranks) as told, across_ranks.telling():
            if told is not None:
                told.check(optimizer._name)
            _step(optimizer, across_ranks)
    return loss


def _step(optimizer: "FusedOptimizer", across_ranks: "NormAcrossRanks | None") -> None:
    fused = optimizer._fused
    fallback = general_fallback(optimizer) or _step_on_kernels(optimizer, across_ranks)
    if fallback is not None or fused.fallback_reason is not None:
        note(optimizer, fallback)
    if fallback is not None:
        with fused.exchange:
            torch_step(optimizer, fallback is not ASKED_FOR, across_ranks)


def general_fallback(optimizer: "FusedOptimizer") -> Fallback | None:
    """Why no step of this optimizer is for the kernels, whatever its parameters are."""
    # The constructor's flags, not the groups': a checkpoint overwrites those.
    defaults = optimizer.defaults
    if defaults.get("foreach") or defaults.get("fused") is False or defaults.get("differentiable"):
        return ASKED_FOR
    if optimizer._prepares_groups or "_init_group" in optimizer.__dict__:
        return OWN_INIT_GROUP
    return None


def _step_on_kernels(
    optimizer: "FusedOptimizer", across_ranks: "NormAcrossRanks | None"
) -> Fallback | None:
    """Does the step, or says why torch's own has to."""
    try:
        found = _C.step(
            optimizer._rule,
            optimizer._name,
            optimizer.param_groups,
            optimizer.state,
            getattr(optimizer, "grad_scale", None),
            getattr(optimizer, "found_inf", None),
            optimizer._fused.options,
            optimizer._fused.exchange,
            None if across_ranks is None else (across_ranks.placements, across_ranks.exchange),
        )
    except _C.StepOptionInGroup:  # which may say what the optimizer says
        remove_written_step_options(optimizer)
        return _step_on_kernels(optimizer, across_ranks)
    return None if found is None else Fallback(*found)
