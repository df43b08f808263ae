"""What ranks have exchanged for a norm, put together on a device that the host does not wait for.

The same rules as on the host, in :mod:`fused_optim.norm_across_ranks`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim.rows_of_ranks import gather_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MISFIT", "NUM_FLAGS", "ROW_WIDTH", "NormOnDevice", "are_replicas"]

#: Sums that differ by more are of different tensors. Reductions give all ranks the same bits; what
#: remains is arithmetic in another order. Independent tensors of a billion elements differ by more.
_REPLICAS_DIFFER = 1e-5

#: Numbers in a row, in which that many placements have room; more take as many again.
ROW_WIDTH = 64

#: At the end of a row: overflow, failed, takes torch's step, redistributes gradients.
NUM_FLAGS = 4

#: What is added to "failed" where ranks have other plans, or no replicas where they should.
MISFIT = 2.0


def are_replicas(larger: Any, smaller: Any) -> Any:
    """Whether these sums, or tensors of sums, may be one tensor's; a replica may lack gradients."""
    return (larger == smaller) | (smaller == 0) | (larger - smaller <= _REPLICAS_DIFFER * larger)


class NormOnDevice:
    """Rows of (rank, plan, the name of each placement's replica, sums of plain tensors and of each
    placement, flags).

    Args:
        count (int): of placements.
        is_max (bool): the largest value, instead of the sum.
    """

    def __init__(self, device: torch.device, count: int, is_max: bool) -> None:
        self.device, self.count, self.is_max = device, count, is_max

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).to(self.device, non_blocking=True)

    def row(
        self,
        own: Sequence[int],
        sums: Tensor,
        found_inf: Any,
        flags: Sequence[float],
    ) -> Tensor:
        """This rank's, of a multiple of ROW_WIDTH."""
        overflow = torch.as_tensor(found_inf).to(self.device, torch.float64).reshape(1)
        parts = [self._numbers(own), sums.to(self.device)]
        room = -(len(own) + sums.numel() + NUM_FLAGS) % ROW_WIDTH
        return torch.cat(
            [*parts, sums.new_zeros(room).to(self.device), overflow, self._numbers(flags)]
        )

    def conclude(
        self,
        row: Tensor,
        groups: "Sequence[ProcessGroup]",
        over: "ProcessGroup | None",
        asked: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the norm is made of; and of all ranks that were asked their numbers and flags.

        Args:
            row: this rank's.
            groups: of the parameters' meshes.
            over: the group that has all of them.
            asked: what must be the same on all of its ranks.
        """
        count = self.count
        rows = gather_rows(row, groups)
        ranks, plans, names = rows[:, 0], rows[:, 1], rows[:, 2 : 2 + count]
        plain, sums = rows[:, 2 + count], rows[:, 3 + count : 3 + 2 * count]
        status = rows[:, -NUM_FLAGS:].clone()
        parts = [self._of_replicas(names[:, i], sums[:, i]) for i in range(count)]
        if over is None:
            parts.append(self._of_replicas(ranks, plain))
            # No replicas where they should be, or other plans: a step of none.
            problems = [(part > 0).sum() > 1 for part in parts] + [(plans != plans[0]).any()]
            status[:, 1] += MISFIT * torch.stack(problems).any()
            return torch.cat(parts), ranks, status
        status[:, 1] += MISFIT * (plans != plans[0]).any()
        # What several ranks have together is given by the first of them.
        is_first = ranks[0] == row[0]
        shared = [torch.where(is_first, part, 0.0) for part in parts]
        given = self._combined(torch.cat([row[2 + count : 3 + count], *shared]))
        return self._over_group(row, given, status.amax(0), over, asked)

    def _over_group(
        self, row: Tensor, given: Tensor, flags: Tensor, over: "ProcessGroup", asked: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        begin = [row[:1], self._numbers([asked]), given]
        # As wide as a row of a grid, which is what a rank of another plan may meet in it.
        room = row.new_zeros(-(3 + NUM_FLAGS) % ROW_WIDTH)
        rows = gather_rows(torch.cat([*begin, room, flags]), [over])
        status = rows[:, -NUM_FLAGS:].clone()
        status[:, 1] += MISFIT * (rows[:, 1] != rows[0, 1]).any()
        return rows[:, 2].contiguous(), rows[:, 0], status

    def _combined(self, values: Tensor) -> Tensor:
        return (values.max() if self.is_max else values.sum())[None]

    def _of_replicas(self, names: Tensor, values: Tensor) -> Tensor:
        """The sums of different tensors, zero for those that replicate another one."""
        sums = values.new_zeros(dist.get_world_size())
        # -1 where a rank has none; any number in the row of a rank with another plan.
        places = names.clamp(0, len(sums) - 1).long()
        sums.scatter_reduce_(0, places, values, "amax" if self.is_max else "sum")
        sums = sums.sort(descending=True).values
        is_new = torch.ones_like(sums, dtype=torch.bool)
        is_new[1:] = ~are_replicas(sums[:-1], sums[1:])
        return torch.where(is_new, sums, 0.0)
