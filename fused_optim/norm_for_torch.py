"""The norm across ranks for a step that is torch's own, whose gradients may be of any kind."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.sharding import are_placed_alike, is_dtensor, local_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from fused_optim.norm_across_ranks import NormAcrossRanks

__all__ = ["norm_for_torch"]


@torch.no_grad()
def norm_for_torch(
    across_ranks: "NormAcrossRanks", params: list[Tensor]
) -> tuple[list[Tensor | None], Tensor]:
    """The parameters' gradients, placed as the parameters are, and their norm over all ranks.

    Gradients that are placed otherwise (Partial ones, too) are redistributed once all ranks know
    that they do that together.

    Args:
        across_ranks: may have exchanged what this rank's kernels gave, before another rank's step
            turned out to be torch's.
        params: all of the optimizer's.

    Raises:
        RuntimeError: if the ranks have gradients that are placed differently.
    """
    misplaced = {i: p for i, p in enumerate(params) if _is_misplaced(p)}
    grads = [p.grad for p in params]
    if not across_ranks.is_done:
        sums = _sums(across_ranks, params, [None if _is_misplaced(p) else p.grad for p in params])
        number = _number_of(f"{i} {_is(p.grad).placements}" for i, p in misplaced.items())
        across_ranks.exchange(sums, takes_torch=True, redistributed=number)
        across_ranks.is_owed = across_ranks.is_owed or bool(misplaced)
    if across_ranks.is_owed:
        for i, p in misplaced.items():
            grads[i] = _is(p.grad).redistribute(_is(p).device_mesh, _is(p).placements)
        across_ranks.exchange(_sums(across_ranks, params, grads), takes_torch=True, is_last=True)
    return grads, across_ranks.norm()


def _is_misplaced(param: Tensor) -> bool:
    both = is_dtensor(param) and is_dtensor(param.grad)
    return both and not are_placed_alike(param, param.grad)


def _number_of(texts: Iterable[str]) -> int:
    """One that other texts hardly have, and that float64 holds; 0 for none."""
    found = list(texts)
    return int(hashlib.sha256(repr(found).encode()).hexdigest()[:12], 16) + 1 if found else 0


def _sums(
    across_ranks: "NormAcrossRanks", params: list[Tensor], grads: list[Tensor | None]
) -> Tensor:
    """As the kernels give them: of plain tensors, then of each placement."""
    numbers = {(id(mesh), dims): number for mesh, dims, number in across_ranks.placements}
    parts: list[list[Tensor]] = [[] for _ in across_ranks.zeros()]
    for param, grad in zip(params, grads, strict=True):
        if grad is None:
            continue
        number = -1
        if is_dtensor(param):
            kinds = enumerate(_is(param).placements)
            dims = sum(1 << i for i, kind in kinds if not kind.is_replicate())
            number = numbers[id(_is(param).device_mesh), dims]
        local = local_of(grad)
        parts[1 + number].append(local.coalesce().values() if local.is_sparse else local)
    kind = across_ranks.norm_type
    norms = torch.stack([_norm(part, kind).to(across_ranks.device) for part in parts])
    return norms if across_ranks.is_max else norms**kind


def _is(tensor: Any) -> "DTensor":
    """The same, for type checkers."""
    found: DTensor = tensor
    return found


def _norm(grads: list[Tensor], kind: float) -> Tensor:
    grads = [grad for grad in grads if grad.numel() > 0]
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    norm = _C.grad_norm(grads, kind)
    if isinstance(norm, str):
        norm = torch.nn.utils.get_total_norm([g.double() for g in grads], kind)
    return norm.double()
