"""torch's own step, with what the kernels would do around it: AMP, clipping, skipping, zeroing
and averaging."""

import collections
import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fused_optim import _C
from fused_optim.compact import refuse_compact
from fused_optim.norm_for_torch import norm_for_torch
from fused_optim.sharding import flags_to_reset, is_dtensor
from fused_optim.state_dtype import for_param
from fused_optim.states_for_torch import StatesForTorch
from fused_optim.step_options import remove_written_step_options
from fused_optim.torch_checks import check_for_torch, rehearse_for_torch

if TYPE_CHECKING:
    from fused_optim.norm_across_ranks import NormAcrossRanks
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["torch_step"]


def torch_step(
    optimizer: "FusedOptimizer",
    default_implementation: bool,
    across_ranks: "NormAcrossRanks | None",
) -> None:
    """Steps with the torch class's implementation.

    Args:
        optimizer: its step options, ``grad_scale`` and ``found_inf`` are honoured.
        default_implementation (bool): let torch choose among its implementations instead of what
            the groups say: its fused kernels check no layouts. Of DTensors it would choose none
            but the for-loop; where all of a group are laid out alike, what the group says is done.
        across_ranks: the norm of the gradients, where other ranks have parts of them.

    Raises:
        Exception: before anything has changed, for what :func:`check_for_torch` finds.
    """
    options = optimizer._fused.options
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if optimizer.defaults.get("fused") and any(p.is_meta for p in params):
        default_implementation = False  # which is an error, in torch's words
    reset_flags = ("foreach", "fused") if default_implementation else ()
    remove_written_step_options(optimizer)
    refuse_compact(optimizer)
    check_for_torch(optimizer)
    with StatesForTorch(optimizer) as states:
        rehearse_for_torch(optimizer, reset_flags)
        is_done, grads = _decide(optimizer, params, options, across_ranks)
        if is_done:
            joining = _values_of_joining(optimizer, params) if options.ema_decay is not None else {}
            _step_on(grads, optimizer, params, reset_flags)
            states.is_done = True
            if options.ema_decay is not None:
                _average(optimizer, params, joining, 1 - options.ema_decay)
    if options.zero_grads:
        Optimizer.zero_grad(optimizer, set_to_none=False)


def _decide(
    optimizer: "FusedOptimizer",
    params: list[Tensor],
    options: _C.StepOptions,
    across_ranks: "NormAcrossRanks | None",
) -> tuple[bool, list[Tensor | None] | None]:
    """Whether the step is done, and unscaled and clipped gradients for it, None where the
    parameters' own will do."""
    grads = [p.grad for p in params]
    grad_scale, found_inf = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    is_done = found_inf is None or float(found_inf) == 0
    scale = 1.0 if grad_scale is None else float(grad_scale)
    coefficient = None
    # On the meta device there is no norm to clip by.
    if options.needs_norm and not any(p.is_meta for p in params):
        if across_ranks is None:
            norm = _total_norm([grad for grad in grads if grad is not None]) / scale
        else:
            grads, total = norm_for_torch(across_ranks, params)
            norm = total / scale
            is_done = is_done and not bool(across_ranks.has_overflowed)
        is_done = is_done and not (options.skip_nonfinite and not norm.isfinite())
        if options.max_grad_norm is not None:
            options.grad_norm = norm
            coefficient = (options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        if options.skip_nonfinite:
            _count(options, norm.device, int(not is_done))
    if not is_done or (scale == 1 and coefficient is None):
        return is_done, None

    def prepared(grad: Tensor) -> Tensor:
        grad = grad if scale == 1 else grad / scale
        if coefficient is None:
            return grad
        # A plain number for DTensors, which don't mix with tensors.
        return grad * (coefficient.item() if is_dtensor(grad) else coefficient.to(grad.device))

    return is_done, [None if grad is None else prepared(grad) for grad in grads]


def _step_on(
    grads: list[Tensor | None] | None,
    optimizer: "FusedOptimizer",
    params: list[Tensor],
    reset_flags: tuple[str, ...],
) -> None:
    """torch's own step, with these gradients in the place of the parameters' own, without AMP's
    attributes and without these flags of the groups.

    What is put away for it comes back whatever happens. Each list of it does in one call into C,
    as a signal handler (Ctrl-C) could run between two calls.
    """
    own = optimizer.__dict__
    amp: dict[str, Any] = {name: own[name] for name in ("grad_scale", "found_inf") if name in own}
    groups = optimizer.param_groups
    asked = [
        {name: group[name] for name in flags_to_reset(group, optimizer.state, reset_flags)}
        for group in groups
    ]
    places: list[dict[str, Any]] = [own, *groups]
    put_away: list[dict[str, Any]] = [amp, *asked]
    grads_before = [p.grad for p in params]
    put_back: Callable[[], object] = functools.partial(
        collections.deque, map(operator.ior, places, put_away), maxlen=0
    )
    try:
        try:
            for place, items in zip(places, put_away, strict=True):
                place.update(dict.fromkeys(items))
            if grads is not None:
                _C.set_grads(params, grads)
            optimizer._torch_step(optimizer)
        finally:
            if grads is not None:
                _C.set_grads(params, grads_before)
    finally:
        put_back()


@torch.no_grad()
def _total_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients, of sparse ones that of their values."""
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    norm = _C.grad_norm(values, 2.0)
    return torch.nn.utils.get_total_norm(values) if isinstance(norm, str) else norm


def _count(options: _C.StepOptions, device: torch.device, skipped: int) -> None:
    if options.skipped_steps is None:
        options.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
    options.skipped_steps += skipped


def _new_average(optimizer: "FusedOptimizer", param: Tensor) -> Tensor:
    wanted = optimizer._fused.options.ema_dtype
    dtype = None if wanted is None else for_param(param, wanted)
    return param.detach().to(dtype or param.dtype, copy=True)


def _values_of_joining(optimizer: "FusedOptimizer", params: list[Tensor]) -> dict[Tensor, Tensor]:
    """The parameters that get an average in this step while others have one, with the averages that
    they begin with: their values."""
    if not any("ema" in state for state in optimizer.state.values()):
        return {}
    joining = (p for p in params if p.grad is not None and "ema" not in optimizer.state.get(p, {}))
    return {p: _new_average(optimizer, p) for p in joining}


def _move(average: Tensor, param: Tensor, weight: float) -> None:
    """Of two dtypes in the wider one, rounded once."""
    if average.dtype == param.dtype:
        average.lerp_(param, weight)
        return
    wide = functools.reduce(torch.promote_types, (average.dtype, param.dtype, torch.float32))
    average.copy_(average.to(wide).lerp_(param.to(wide), weight))


@torch.no_grad()
def _average(
    optimizer: "FusedOptimizer", params: list[Tensor], joining: dict[Tensor, Tensor], weight: float
) -> None:
    """Moves all averages towards the parameters. The optimizer's first ones are the parameters."""
    for p in dict.fromkeys(params):
        state = optimizer.state.get(p, {})
        average = state.get("ema", joining.get(p))
        wanted = optimizer._fused.options.ema_dtype
        if average is not None:
            if wanted is not None and not average.is_complex():
                average = average.to(wanted)
            _move(average, p, weight)
        elif p.grad is not None:
            average = _new_average(optimizer, p)
        if average is not None:
            optimizer.state[p]["ema"] = average
