"""What ranks have exchanged for a norm, put together on a device that the host does not wait for.

The same rules as on the host, in :mod:`fused_optim.norm_across_ranks`; only that nobody looks
whether replicas are replicas.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim.rows_of_ranks import gather_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["NUM_FLAGS", "NormOnDevice"]

#: At the end of a row: overflow, failed, takes torch's step, redistributes gradients.
NUM_FLAGS = 4


class NormOnDevice:
    """Rows of (rank, the lowest rank of each mesh's instance, sums of plain tensors and of each
    mesh, flags).

    Args:
        count (int): of meshes.
        is_max (bool): the largest value, instead of the sum.
    """

    def __init__(self, device: torch.device, count: int, is_max: bool) -> None:
        self.device, self.count, self.is_max = device, count, is_max

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).to(self.device, non_blocking=True)

    def row(
        self, own: Sequence[int], sums: Tensor, found_inf: Any, flags: Sequence[float]
    ) -> Tensor:
        """This rank's."""
        overflow = torch.as_tensor(found_inf).to(self.device, torch.float64).reshape(1)
        return torch.cat([self._numbers(own), sums.to(self.device), overflow, self._numbers(flags)])

    def conclude(
        self, row: Tensor, groups: "Sequence[ProcessGroup]", over: "ProcessGroup | None"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the norm is made of; and of all ranks that were asked their numbers and flags."""
        count = self.count
        rows = gather_rows(row, groups)
        sizes = [1, count, 1, count, NUM_FLAGS]
        ranks, instances, plain, of_meshes, status = torch.split_with_sizes(rows, sizes, 1)
        parts = [self._of_one_instance(instances[:, i], of_meshes[:, i]) for i in range(count)]
        if over is None:
            return torch.cat([*parts, plain.max()[None]]), ranks[:, 0], status
        # What several ranks have together is given by the first of them.
        shared = self._combined(torch.cat(parts)) if parts else row[:0]
        is_first = ranks[0, 0] == row[0]
        own = row[1 + count : 2 + count]
        given = self._combined(torch.cat([own, torch.where(is_first, shared, 0.0)]))
        rows = gather_rows(torch.cat([row[:1], given, status.amax(0)]), [over])
        ranks, contributions, status = torch.split_with_sizes(rows, [1, 1, NUM_FLAGS], 1)
        return contributions[:, 0].contiguous(), ranks[:, 0], status

    def _combined(self, values: Tensor) -> Tensor:
        return (values.max() if self.is_max else values.sum())[None]

    def _of_one_instance(self, instances: Tensor, values: Tensor) -> Tensor:
        sums = values.new_zeros(dist.get_world_size())
        places = instances.clamp(min=0).long()
        sums.scatter_reduce_(0, places, values, "amax" if self.is_max else "sum")
        # Rounded, so that the order of an addition can't decide.
        return torch.where(instances == sums.float().argmax(), values, 0.0)
