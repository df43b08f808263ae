"""One row of numbers from each rank, gathered on the host of all ranks that process groups connect.

The groups of a mesh's dimensions are the lines of a grid, and gathered one after the other they
reach all of it. Other meshes need not form one: of three ranks two meshes may have two each. Then
the ranks would wait for one another with different numbers of rows, which backends answer with an
abort. So each group first exchanges one row a rank, of the same size whatever those ranks have done
before, by which they know whether to go on.
"""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from fused_optim.norm_on_device import NUM_FLAGS, ROW_WIDTH
from fused_optim.rows_of_ranks import all_gathered

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FAILED", "GridOfRanks", "Row"]

Row = list[float]
_DIFFERENT = (
    "ranks that share a mesh have parameters that are placed differently, or another "
    "max_grad_norm, skip_nonfinite or norm_group"
)
_NO_GRID = (
    "the parameters' meshes form no grid of ranks: of those that share one, some share others with "
    "different ranks"
)

#: Where in a row is 1 + the number of a rank that has failed, 0 for none.
FAILED = 1 - NUM_FLAGS
#: Where in a row is which of its groups a rank is at.
_STAGE = -NUM_FLAGS - 1


class GridOfRanks:
    """The ranks that groups connect, one group after the other.

    Args:
        groups: this rank's.
    """

    def __init__(self, groups: "Sequence[ProcessGroup]") -> None:
        self.groups = groups
        ranks = [tuple(dist.get_process_group_ranks(group)) for group in groups]
        self.sizes = [len(own) for own in ranks]
        #: Of the groups, where there are several, the same number on all of their ranks.
        self._names = [float(hash(own) >> 16) for own in ranks] if len(ranks) > 1 else []

    def gather(
        self, values: Sequence[float], flags: Sequence[float]
    ) -> tuple[list[Row], str | None]:
        """The rows of all ranks that are reached, in their order, each once.

        Where a rank has failed, a row of each rank that it is connected with says so, but there may
        be no rows of others.

        Args:
            values: this rank, a number that must be the same on all ranks, and others.
            flags: overflow, FAILED, and others.

        Returns:
            And what the ranks should have alike and don't.
        """
        start = len(values)
        row = [*values, *self._names, 0.0, *flags]
        row[_STAGE:_STAGE] = [0.0] * (-len(row) % ROW_WIDTH)
        rows, problem = [row], None
        for stage, group in enumerate(self.groups):
            row[_STAGE] = stage
            met = _gathered([row], group)
            failed = max([other[FAILED] for other in met])
            if failed == 0:
                problem = self._misfit(met, start)
            if problem is not None:
                failed = row[0] + 1
            # On all ranks of this group, or on none of them.
            if failed == 0:
                rows = met if stage == 0 else _gathered(rows, group)
                continue
            row[FAILED] = row[FAILED] or failed
            rows += met
        if problem is None and row[FAILED] == 0 and len(self.groups) == 1:
            return sorted(rows), None
        by_rank = {other[0]: other for other in rows}
        by_rank.update({other[0]: other for other in (*rows, row) if other[FAILED] != 0})
        rows = [by_rank[number] for number in sorted(by_rank)]
        if row[FAILED] == 0 and not self._is_closed(rows, start):
            problem = _NO_GRID
        return rows, problem

    def _misfit(self, met: list[Row], start: int) -> str | None:
        """What the ranks of one group should have alike and don't: their plan, how many of their
        groups are done, and no two of them another group."""
        if len({row[1] for row in met}) > 1:
            return _DIFFERENT
        stage = int(met[0][_STAGE])
        for i in range(len(self._names)):
            different = len({(row[_STAGE], row[start + i]) for row in met})
            if different != (1 if i == stage else len(met)):
                return _NO_GRID
        return None

    def _is_closed(self, rows: list[Row], start: int) -> bool:
        """Whether no group has a rank beyond those that were reached."""
        for i in range(len(self._names)):
            counts = collections.Counter(row[start + i] for row in rows)
            if any(count != self.sizes[i] for count in counts.values()):
                return False
        return True


def _gathered(rows: list[Row], group: "ProcessGroup") -> list[Row]:
    found: list[Row] = all_gathered(torch.tensor(rows, dtype=torch.float64), group).tolist()
    return found
