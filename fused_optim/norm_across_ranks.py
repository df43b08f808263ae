"""A norm over several ranks: which of them have a part, and one exchange that makes it whole.

Under FSDP2, tensor or expert parallelism parameters are DTensors, and a rank has parts of their
gradients. What is exchanged, and with whom, follows from the parameters alone, never from which of
them have gradients: each rank takes part once in a step, and once more where it is torch's own,
with zeros where it has none, and also where it has met with an error, which it then tells. So all
ranks skip, fail, or take torch's step together, and none waits for one that has failed within it.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim._C import SignalsLater
from fused_optim.grid_of_ranks import FAILED, Row
from fused_optim.norm_on_device import NUM_FLAGS, ROW_WIDTH, NormOnDevice, are_replicas
from fused_optim.norm_plan import NormPlan
from fused_optim.rows_of_ranks import all_gathered
from fused_optim.told_later import ToldLater, check_none_has_failed

__all__ = ["NormAcrossRanks"]

_NO_REPLICAS = (
    "ranks that share a mesh have gradients of other norms for parameters outside it, or that it "
    "replicates, so that they are no replicas of one another: their norm needs a norm_group, or "
    "DTensors that say how they are placed"
)


class NormAcrossRanks:
    """One norm of the gradients of parameters that lie on several ranks.

    Args:
        name (str): of the optimizer or function, for errors.
        plan: who exchanges what with whom.
        norm_type (float): above 0; infinity for the largest absolute value.
        found_inf (Tensor or float, optional): AMP's, of this rank.
    """

    def __init__(self, name: str, plan: NormPlan, norm_type: float, found_inf: Any = None) -> None:
        self.name = name
        self.plan = plan
        self.group = plan.group
        self.placements = plan.placements
        self.device = plan.device
        self.norm_type = norm_type
        self.is_max = math.isinf(norm_type)
        self.found_inf = 0.0 if found_inf is None else found_inf
        #: Whether the other ranks wait for this one to exchange what it has.
        self.is_owed = True
        #: Whether an exchange was made.
        self.is_done = False
        #: What the norm is made of, the same on all ranks: sums of powers, or largest values.
        self.contributions: Tensor | None = None
        self.has_overflowed: bool | Tensor = False
        self.told_later: ToldLater | None = None
        self._count = len(plan.different)
        #: Where in a row the sum of plain tensors is.
        self._plain = len(plan.own)

    def check_group(self) -> None:
        """Raises RuntimeError if a rank of the parameters' meshes is not in the group."""
        if self.plan.lacks_ranks:
            raise RuntimeError(
                f"fused_optim.{self.name}: norm_group lacks ranks of the parameters' meshes"
            )

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Inside, an error is told to the other ranks, unless they know already.

        What is around it keeps signals back, which would come between an exchange and what follows.
        """
        try:
            yield
        except BaseException:
            if self.is_owed:
                self.tell_failure()
            raise

    def tell_failure(self) -> None:
        """Takes part in the exchange as a rank that has failed, and raises no error of its own."""
        self.found_inf = 0.0  # it may be what is wrong
        # What it suppresses says that this rank has failed.
        with SignalsLater(), contextlib.suppress(Exception):
            self.exchange(self.zeros(), has_failed=True)

    def norm(self) -> Tensor:
        """Of all ranks' gradients, once the sums are exchanged: float64, no dimensions."""
        values = self.contributions
        assert values is not None
        if self.is_max:
            return values.max()
        return values.sum().sqrt() if self.norm_type == 2 else values.sum() ** (1 / self.norm_type)

    def zeros(self) -> Tensor:
        """The sums of a rank without gradients."""
        return torch.zeros(1 + self._count, dtype=torch.float64)

    def exchange(
        self,
        sums: Tensor,
        has_failed: bool = False,
        takes_torch: bool = False,
        redistributed: int = 0,
        is_last: bool = False,
    ) -> tuple[Tensor, bool | Tensor] | None:
        """Gives this rank's part for what all ranks have.

        Where a rank takes torch's step, as far as the host knows, all do, and exchange once more
        when they have made sure that they can.

        Args:
            sums (Tensor): of the powers that ``norm_type`` says of plain tensors' gradients, then
                of each placement's, float64; the largest absolute values for infinity.
            has_failed (bool): nothing is to be done on any rank.
            takes_torch (bool): this rank's step is torch's own.
            redistributed (int): which gradients are redistributed first, as a number that is the
                same on all ranks; 0 for none.
            is_last (bool): nobody exchanges anything after it.

        Returns:
            What the norm is made of, and whether any rank's AMP has found an overflow: on a device
            as a tensor, which is also set where a rank has failed. None if another rank takes
            torch's step, so that all have to.

        Raises:
            RuntimeError: if a rank has failed, or if ranks have no replicas where they should.
        """
        if self.device.type != "cpu":
            return self._exchange_on_device(sums, [has_failed, takes_torch, redistributed])
        own = self.plan.own
        flags = [float(self.found_inf), has_failed * (own[0] + 1.0), takes_torch, redistributed]
        self.is_owed, self.is_done = False, True
        rows, problem = self.plan.grid.gather([*own, *sums.tolist()], flags)
        told = [row[-NUM_FLAGS:] for row in rows]
        contributions: list[float] = []
        has_met = problem is not None or any([flags[FAILED] for flags in told])
        if not has_met:
            contributions, problem = self._contributions(rows)
        if self.group is not None and not (has_met and self._know_all(rows)):
            contributions, told, other = self._over_group(rows, sums, contributions, problem)
            problem = problem or other
        if problem is not None:
            raise RuntimeError(f"fused_optim.{self.name}: {problem}. Nothing was changed.")
        failed = [flags[FAILED] - 1 for flags in told if flags[FAILED] != 0]
        check_none_has_failed(self.name, failed, "this step")
        self.contributions = torch.tensor(contributions, dtype=torch.float64)
        self.has_overflowed = any([flags[0] != 0 for flags in told])
        self.is_owed = any([flags[2] for flags in told]) and not is_last
        if self.is_owed and not takes_torch:
            return None
        return self.contributions, self.has_overflowed

    def _parts(self, rows: list[Row], number: int) -> list[tuple[float, float]]:
        """(the name of the replica, this rank's sum for it) of the ranks that have a placement."""
        parts = ((row[2 + number], row[self._plain + 1 + number]) for row in rows)
        return [(name, value) for name, value in parts if name >= 0]

    def _contributions(self, rows: list[Row]) -> tuple[list[float], str | None]:
        """What tensors that are placed alike have together, plain ones, too, unless a group has
        them; and what the ranks' gradients should have alike and don't."""
        if len({row[-1] for row in rows}) > 1:
            return [], "the ranks' gradients are placed differently"
        parts = [self._of_replicas(self._parts(rows, i)) for i in range(self._count)]
        if self.group is None:
            parts.append(self._of_replicas([(row[0], row[self._plain]) for row in rows]))
            # Zero where a replica has no gradients.
            if any([len(part) > 1 and part[1] > 0 for part in parts]):
                return [], _NO_REPLICAS
        return [value for part in parts for value in part], None

    def _know_all(self, rows: list[Row]) -> bool:
        """Whether all ranks of the group have these rows: then none of them waits for more."""
        return len(self.plan.grid.groups) == 1 and self.plan.members == {row[0] for row in rows}

    def _over_group(
        self, rows: list[Row], sums: Tensor, contributions: list[float], problem: str | None
    ) -> tuple[list[float], list[Row], str | None]:
        """What each rank of the group gives to the norm, its flags, and what they should have alike
        and don't. What several ranks have together is given by the first of them."""
        this = float(dist.get_rank())
        shared = contributions if rows[0][0] == this else []
        status = [_largest(flag) for flag in zip(*(row[-NUM_FLAGS:] for row in rows), strict=True)]
        if problem is not None:
            status[FAILED] = this + 1
        given = [this, self.plan.asked, self._combined([float(sums[0]), *shared])]
        # As wide as a row of a grid: a rank that has no part of one, or steps another optimizer,
        # meets those of one in this, and learns from the second number that they don't fit.
        room = [0.0] * (-(len(given) + NUM_FLAGS) % ROW_WIDTH)
        given += [*room, *status]
        assert self.group is not None
        over = all_gathered(torch.tensor([given], dtype=torch.float64), self.group).tolist()
        over.sort()
        other = None
        if len({row[1] for row in over}) > 1:
            other = "ranks of norm_group have another max_grad_norm or skip_nonfinite"
        return [row[2] for row in over], [row[-NUM_FLAGS:] for row in over], other

    def _exchange_on_device(
        self, sums: Tensor, flags: Sequence[float]
    ) -> tuple[Tensor, bool | Tensor]:
        on_device = NormOnDevice(self.device, self._count, self.is_max)
        row = on_device.row(self.plan.own, sums, self.found_inf, flags)
        self.is_owed, self.is_done = False, True
        contributions, ranks, status = on_device.conclude(
            row, self.plan.grid.groups, self.group, self.plan.asked
        )
        self.contributions = contributions
        self.has_overflowed = ((status[:, 0] != 0) | (status[:, 1] != 0)).any().float()[None]
        if not torch.cuda.is_current_stream_capturing():
            self.told_later = ToldLater(ranks, status[:, 1])
        return contributions, self.has_overflowed

    def _combined(self, values: Sequence[float]) -> float:
        return _largest(values) if self.is_max else sum(values)

    def _of_replicas(self, parts: list[tuple[float, float]]) -> list[float]:
        """The sum of each replica's parts, of replicas of one another one. Others than replicas are
        different tensors, of which each counts."""
        found: dict[float, list[float]] = {}
        for name, value in parts:
            found.setdefault(name, []).append(value)
        sums = [self._combined(values) for values in found.values()]
        if any(map(math.isnan, sums)):
            return [math.nan]
        kept: list[float] = []
        for value in sorted(sums, reverse=True):
            if not kept or not are_replicas(kept[-1], value):
                kept.append(value)
        return kept


def _largest(values: Iterable[float]) -> float:
    """NaN, where one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)
