"""Where a tensor's elements lie, asked before torch writes or reads them."""

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.sharding import local_of

__all__ = ["is_expanded", "reaches_beyond"]


def _has_own_memory(tensor: Tensor) -> bool:
    """Of other subclasses nobody knows what their storage and strides are."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_expanded(tensor: Tensor) -> bool:
    """Whether several elements are one place in memory as torch finds it out: half way."""
    tensor = local_of(tensor)
    if not _has_own_memory(tensor):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.layout != torch.strided or tensor.numel() == 0:
            return False
        strides = zip(tensor.shape, tensor.stride(), strict=True)
        return any(size > 1 and stride == 0 for size, stride in strides)


def reaches_beyond(tensor: Tensor) -> bool:
    """Whether an element is not within its storage's memory, whose size torch does not look at."""
    tensor = local_of(tensor)
    if not _has_own_memory(tensor) or _C.is_readable(tensor):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        # Transforms' wrappers have no storage to ask.
        has_storage = tensor.layout == torch.strided and torch._C._has_storage(tensor)
        if not has_storage or tensor.is_meta or tensor.numel() == 0:
            return False
        last = map(lambda size, stride: (size - 1) * stride, tensor.shape, tensor.stride())
        end = tensor.storage_offset() + sum(last) + 1
        return end * tensor.element_size() > tensor.untyped_storage().nbytes()
