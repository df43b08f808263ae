"""clip_grad_norm_ in one pass over the gradients, in place of torch.nn.utils.clip_grad_norm_."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

from fused_optim import _C
from fused_optim.sharding import is_dtensor, local_of
from fused_optim.shards import readable_placements

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    r"""Clips the gradients' norm, all of them seen as one vector, in place.

    .. math::
        g \leftarrow g \cdot \min\big(1, \; c / (\lVert g \rVert_p + 10^{-6})\big)

    One pass reads the gradients; a second one writes them only if there is something to clip, which
    on a GPU is decided there, without synchronising. The norm is summed in float64 and in a fixed
    order: it is the same to the last bit for any number of threads, alignment and device.

    Args:
        parameters: a tensor or an iterable of tensors, whose gradients are clipped; those without
            one are left out. DTensors, which may lie on several meshes and beside plain tensors,
            have the norm of the whole tensors, on all ranks that share their meshes: all of those
            call this, whichever gradients they have, with the same parameters.
        max_norm (float): the largest norm :math:`c` that is let through.
        norm_type (float): :math:`p`. 1, 2 and inf are fused; others, and gradients that are sparse,
            of a tensor subclass other than DTensor, not dense in memory, overlapping (one tensor is
            the gradient of several parameters) or, unless :math:`p` is 2, complex, go through
            torch's own function.
        error_if_nonfinite (bool): raise if the norm is NaN or infinite (default: False).
        foreach (bool, optional): ``False`` asks for torch's own for-loop.

    Returns:
        The norm before clipping: no dimensions, the gradients' dtype (of several, the one that they
        promote to), on the first gradient's device.

    Raises:
        RuntimeError: with ``error_if_nonfinite``, if the norm is; the gradients are left as they
            are.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    rest = (max_norm, norm_type, error_if_nonfinite, foreach)
    if not params:
        return torch_clip_grad_norm_(parameters, *rest)  # warns of an empty generator
    grads = [p.grad for p in params if p.grad is not None]
    takes_torch = foreach is False or torch.compiler.is_compiling()
    is_sharded = any(is_dtensor(p) and not p.is_meta for p in params)
    if is_sharded and not takes_torch and float(norm_type) > 0:
        whole = _clip_across_ranks(params, float(max_norm), float(norm_type), error_if_nonfinite)
        return whole.to(_dtype_of(p if p.grad is None else p.grad for p in params))
    if not grads or takes_torch:
        return torch_clip_grad_norm_(params, *rest)
    norm = _C.grad_norm(grads, float(norm_type))
    if isinstance(norm, str):
        return torch_clip_grad_norm_(params, *rest)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise _nonfinite(norm_type)
    if _C.clip_grads(grads, norm, float(max_norm)) is not None:  # they overlap
        return torch_clip_grad_norm_(params, *rest)
    return norm.to(_dtype_of(grads))


def _dtype_of(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, {t.dtype.to_real() for t in tensors})


def _nonfinite(norm_type: float) -> RuntimeError:
    return RuntimeError(
        f"The total norm of order {float(norm_type)} for gradients from "
        "`parameters` is non-finite, so it cannot be clipped. To disable "
        "this error and scale the gradients by the non-finite norm anyway, "
        "set `error_if_nonfinite=False`"
    )


def _clip_across_ranks(
    params: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor:
    """The norm of parameters of which some are DTensors, float64, after the clipping."""
    from fused_optim.norm_across_ranks import NormAcrossRanks
    from fused_optim.norm_for_torch import norm_for_torch
    from fused_optim.norm_plan import NormPlan

    def norm_over(placements: list[Any]) -> NormAcrossRanks:
        plan = NormPlan(placements, None, params[0].device, (max_norm, norm_type))
        return NormAcrossRanks("clip_grad_norm_", plan, norm_type)

    try:
        across_ranks = norm_over(_C.placements_of_params(params)[0])
    except RuntimeError:  # a parameter is placed in a way that has no norm
        norm_over(readable_placements(params)).tell_failure()
        raise
    # Ctrl-C is raised once the gradients are clipped, as they are on the other ranks.
    with _C.SignalsLater():
        with across_ranks.telling():
            _, norm = norm_for_torch(across_ranks, params)
        if error_if_nonfinite and not math.isfinite(norm.item()):
            raise _nonfinite(norm_type)
        _clip_locals([p.grad for p in params if p.grad is not None], norm, max_norm)
    return norm


def _clip_locals(grads: list[Tensor], norm: Tensor, max_norm: float) -> None:
    locals_ = [local_of(grad) for grad in grads]  # of Partial ones, too: they are linear
    if _C.clip_grads(locals_, norm, max_norm) is not None:
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for local in locals_:
            local.mul_(coefficient.to(local.device))
    torch.autograd.graph.increment_version([grad for grad in grads if is_dtensor(grad)])
