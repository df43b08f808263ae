"""clip_grad_norm_ in one pass over the gradients, in place of torch.nn.utils.clip_grad_norm_."""

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

from fused_optim import _C

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
            one are left out.
        max_norm (float): the largest norm :math:`c` that is let through.
        norm_type (float): :math:`p`. 1, 2 and inf are fused; others, and gradients that are sparse,
            of a tensor subclass, not dense in memory, overlapping (one tensor is the gradient of
            several parameters) or, unless :math:`p` is 2, complex, go through torch's own function.
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
    if not grads or foreach is False or torch.compiler.is_compiling():
        return torch_clip_grad_norm_(params, *rest)
    norm = _C.grad_norm(grads, float(norm_type))
    if isinstance(norm, str):
        return torch_clip_grad_norm_(params, *rest)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            f"The total norm of order {float(norm_type)} for gradients from "
            "`parameters` is non-finite, so it cannot be clipped. To disable "
            "this error and scale the gradients by the non-finite norm anyway, "
            "set `error_if_nonfinite=False`"
        )
    if _C.clip_grads(grads, norm, float(max_norm)) is not None:  # they overlap
        return torch_clip_grad_norm_(params, *rest)
    dtypes = {g.dtype.to_real() for g in grads}
    return norm.to(functools.reduce(torch.promote_types, dtypes))
