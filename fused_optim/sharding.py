"""DTensors: which tensors are, this rank's part of them, and states that are placed like them.

Nothing here imports ``torch.distributed.tensor``: a process that has DTensors has done so.
"""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "are_placed_alike",
    "first_index",
    "flags_to_reset",
    "is_dtensor",
    "local_of",
    "placed_as",
    "state_like",
]

_MODULE = "torch.distributed.tensor"


def is_dtensor(tensor: object) -> bool:
    """Whether it is a DTensor, or of a subclass."""
    module = sys.modules.get(_MODULE)
    kind = getattr(module, "DTensor", None)  # not yet where it is being imported
    return kind is not None and isinstance(tensor, kind)


def local_of(tensor: Any) -> Tensor:
    """This rank's part, or the tensor itself where it is no DTensor."""
    local: Tensor = tensor._local_tensor if is_dtensor(tensor) else tensor
    return local


def are_placed_alike(a: Any, b: Any) -> bool:
    """Whether two DTensors lie on equal meshes in the same way."""
    one, other = a._spec, b._spec
    return (
        one.mesh == other.mesh
        and one.placements == other.placements
        and getattr(one, "shard_order", None) == getattr(other, "shard_order", None)
    )


def placed_as(tensor: Any) -> str:
    """For errors."""
    return f"{tensor._spec.placements} on {tensor._spec.mesh}"


def flags_to_reset(group: dict[str, Any], states: Any, asked: tuple[str, ...]) -> list[str]:
    """Which flags of a group torch's step is not to find set.

    Of those that are asked for, none where all parameters are DTensors that torch's fused and
    foreach steps may take. All that choose an implementation where DTensors are beside plain
    tensors, which the for-loop alone takes.
    """
    stepped = [p for p in group["params"] if p.grad is not None]
    sharded = [p for p in stepped if is_dtensor(p)]
    if sharded and len(sharded) < len(stepped):
        asked = ("foreach", "fused")
    elif sharded and _are_laid_out_alike(sharded, states):
        asked = ()
    return [name for name in asked if name in group]


def _are_laid_out_alike(params: list[Tensor], states: Any) -> bool:
    """Whether the parts of DTensors lie in memory as those of their gradients and states do."""
    for param in params:
        if not is_dtensor(param.grad):
            return False
        local = local_of(param)
        beside = [param.grad, *(s for s in states.get(param, {}).values() if is_dtensor(s))]
        for other in map(local_of, beside):
            if other.layout != torch.strided or other.stride() != local.stride():
                return False
    return True


def first_index(spec: Any) -> int:
    """The place, in the memory of the whole tensor, of the first element of this rank's part. Where
    it is sharded along its first dimension, the others follow it."""
    utils: Any = sys.modules["torch.distributed.tensor._utils"]
    try:
        offsets = utils.compute_local_shape_and_global_offset(
            spec.shape, spec.mesh, spec.placements
        )[1]
    except (NotImplementedError, RuntimeError):  # of strided shards, which begin in several places
        return 0
    index, stride = 0, 1
    for size, offset in zip(reversed(spec.shape), reversed(offsets), strict=True):
        index += offset * stride
        stride *= size
    return int(index)


def state_like(param: "DTensor", local: Tensor) -> "DTensor":
    """This rank's part of a state as a DTensor that is placed like its parameter.

    Args:
        param (DTensor): whose state it is.
        local (Tensor): of the shape of the parameter's part; its dtype may be another one.
    """
    spec = param._spec
    if local.dtype != param.dtype:
        meta: Any = type(spec.tensor_meta)
        meta = meta(param.shape, param.stride(), local.dtype)
        spec = dataclasses.replace(spec, tensor_meta=meta)
    make: Any = sys.modules[_MODULE].DTensor
    with torch.no_grad():
        made: DTensor = make(local, spec, requires_grad=False)
    return made
