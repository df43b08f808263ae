"""torch's own step, with what the kernels would do around it: AMP, clipping, skipping, zeroing
and averaging."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["torch_step"]


def torch_step(optimizer: "FusedOptimizer", default_implementation: bool) -> None:
    """Steps with the torch class's implementation.

    Args:
        optimizer: its ``_step_options``, ``grad_scale`` and ``found_inf`` are honoured.
        default_implementation (bool): let torch choose among its implementations instead of what
            the groups say: its fused kernels check no layouts.
    """
    options = optimizer._step_options or _C.StepOptions()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    with contextlib.ExitStack() as stack:
        if default_implementation:
            stack.enter_context(_default_implementation(optimizer))
        is_done = stack.enter_context(_prepared_gradients(optimizer, params, options))
        joining = _values_of_joining(optimizer, params) if options.ema_decay is not None else {}
        optimizer._torch_step(optimizer)
        if is_done and options.ema_decay is not None:
            _average(optimizer, params, joining, 1 - options.ema_decay)
    if options.zero_grads:
        Optimizer.zero_grad(optimizer, set_to_none=False)


@contextlib.contextmanager
def _default_implementation(optimizer: Optimizer) -> Iterator[None]:
    flags = [
        (group, name, group[name])
        for group in optimizer.param_groups
        for name in ("foreach", "fused")
        if name in group
    ]
    try:
        for group, name, _ in flags:
            group[name] = None
        yield
    finally:
        for group, name, value in flags:
            group[name] = value


@contextlib.contextmanager
def _prepared_gradients(
    optimizer: "FusedOptimizer", params: list[Tensor], options: _C.StepOptions
) -> Iterator[bool]:
    """Puts unscaled and clipped gradients in the place of the parameters' own, none where the step
    is skipped. Gives whether it is done."""
    amp = {name: optimizer.__dict__.pop(name, None) for name in ("grad_scale", "found_inf")}
    grads = [p.grad for p in params]
    try:
        is_done = amp["found_inf"] is None or float(amp["found_inf"]) == 0
        scale = 1.0 if amp["grad_scale"] is None else float(amp["grad_scale"])
        coefficient = None
        if options.max_grad_norm is not None or options.skip_nonfinite:
            norm = _total_norm([grad for grad in grads if grad is not None]) / scale
            is_done = is_done and not (options.skip_nonfinite and not norm.isfinite())
            if options.max_grad_norm is not None:
                options.grad_norm = norm
                coefficient = (options.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            if options.skip_nonfinite:
                _count(options, norm.device, int(not is_done))
        for p, grad in zip(params, grads, strict=True):
            if grad is not None and not is_done:
                p.grad = None
            elif grad is not None and (scale != 1 or coefficient is not None):
                p.grad = grad if scale == 1 else grad / scale
                if coefficient is not None:
                    p.grad = p.grad * coefficient.to(grad.device)
        yield is_done
    finally:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        optimizer.__dict__.update({k: v for k, v in amp.items() if v is not None})


@torch.no_grad()
def _total_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients, of sparse ones that of their values."""
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    norm = _C.grad_norm(values, 2.0)
    if isinstance(norm, str):
        norm = torch.nn.utils.get_total_norm(values)
        if hasattr(norm, "full_tensor"):  # of distributed tensors
            norm = norm.full_tensor()
    return norm


def _count(options: _C.StepOptions, device: torch.device, skipped: int) -> None:
    if options.skipped_steps is None:
        options.skipped_steps = torch.zeros((), dtype=torch.int64, device=device)
    options.skipped_steps += skipped


def _values_of_joining(optimizer: Optimizer, params: list[Tensor]) -> dict[Tensor, Tensor]:
    """The parameters that get an average in this step while others have one, with their values:
    theirs begin there."""
    if not any("ema" in state for state in optimizer.state.values()):
        return {}
    joining = (p for p in params if p.grad is not None and "ema" not in optimizer.state.get(p, {}))
    return {p: p.detach().clone() for p in joining}


@torch.no_grad()
def _average(
    optimizer: Optimizer, params: list[Tensor], joining: dict[Tensor, Tensor], weight: float
) -> None:
    """Moves all averages towards the parameters. The optimizer's first ones are the parameters."""
    for p in dict.fromkeys(params):
        state = optimizer.state.get(p, {})
        average = state.get("ema", joining.get(p))
        if average is not None:
            average.lerp_(p, weight)
        elif p.grad is not None:
            average = p.detach().clone()
        if average is not None:
            optimizer.state[p]["ema"] = average
