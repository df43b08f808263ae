"""A norm over several ranks: which of them have a part, and one exchange that makes it whole.

Under FSDP2, tensor or expert parallelism parameters are DTensors, and a rank has parts of their
gradients. What is exchanged, and with whom, follows from the parameters alone, never from which of
them have gradients: each rank takes part once in a step, and once more where it is torch's own,
with zeros where it has none, and also where it has met with an error, which it then tells. So all
ranks skip, fail, or take torch's step together, and none waits for one that has failed within it.
"""

import contextlib
import hashlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim.norm_on_device import NUM_FLAGS, NormOnDevice, are_replicas
from fused_optim.rows_of_ranks import device_for, gather_rows, groups_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["NormAcrossRanks", "ToldLater"]

#: Numbers in a row, in which that many placements have room; more take as many again.
_WIDTH = 64

_first_ranks: "weakref.WeakKeyDictionary[DeviceMesh, dict[int, int]]" = weakref.WeakKeyDictionary()


def _first_rank(mesh: "DeviceMesh", sharded_dims: int) -> int:
    """The lowest of the ranks that have the parts of one replica, this one among them, which names
    the replica; -1 where this rank is not in the mesh."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return -1
    known = _first_ranks.setdefault(mesh, {})
    if sharded_dims not in known:
        places = enumerate(coordinate)
        index = tuple(slice(None) if sharded_dims >> i & 1 else place for i, place in places)
        known[sharded_dims] = int(mesh.mesh[index].min())
    return known[sharded_dims]


class ToldLater:
    """Which ranks have failed, on its way from a device that the host does not wait for."""

    def __init__(self, ranks: Tensor, failed: Tensor) -> None:
        self._told = torch.empty(2, len(ranks), dtype=torch.float64, pin_memory=True)
        self._told.copy_(torch.stack([ranks, failed]), non_blocking=True)
        make_event: Any = torch.cuda.Event
        self._event = make_event()
        self._event.record()

    def check(self, name: str) -> None:
        """Raises RuntimeError if a rank has failed in the step before, which the device has done by
        now."""
        self._event.synchronize()
        _check_none_has_failed(name, self._told.T.tolist(), "the step before")


def _check_none_has_failed(name: str, told: Iterable[Sequence[float]], which: str) -> None:
    who = ", ".join(str(int(rank)) for rank, failed in told if failed != 0)
    if who:
        raise RuntimeError(
            f"fused_optim.{name}: {which} met with an error on rank {who}, which names it; so no "
            "rank that shares the norm of the gradients did it. Nothing was changed."
        )


class NormAcrossRanks:
    """One norm of the gradients of parameters that lie on several ranks.

    Args:
        name (str): of the optimizer or function, for errors.
        placements: (mesh, a bit for each of its dimensions along which tensors are sharded) of the
            parameters, in their order.
        group (ProcessGroup, optional): over whose ranks plain tensors are shards, and what meshes
            give is summed up.
        device (torch.device): where the parameters are.
        norm_type (float): above 0; infinity for the largest absolute value.
        found_inf (Tensor or float, optional): AMP's, of this rank.

    Raises:
        RuntimeError: if a rank of the parameters' meshes is not in the group.
    """

    def __init__(
        self,
        name: str,
        placements: "Sequence[tuple[DeviceMesh, int]]",
        group: "ProcessGroup | None",
        device: torch.device,
        norm_type: float,
        found_inf: Any = None,
    ) -> None:
        self.name = name
        self.group = group
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
        self._different: list[tuple[DeviceMesh, int]] = []
        #: (mesh, sharded dimensions, the number of those that are equal).
        self.placements = tuple((*place, self._number(*place)) for place in placements)
        self._groups = groups_of(mesh for mesh, _ in self._different)
        groups = self._groups if group is None else [*self._groups, group]
        #: Where sums are exchanged.
        self.device = device_for(groups, device)
        members = set(dist.get_process_group_ranks(groups[-1])) if groups else set()
        if group and any(set(dist.get_process_group_ranks(g)) - members for g in groups):
            raise RuntimeError(
                f"fused_optim.{name}: norm_group lacks ranks of the parameters' meshes"
            )
        kinds = repr([(tuple(mesh.shape), dims) for mesh, dims in self._different])
        self._plan = int(hashlib.sha256(kinds.encode()).hexdigest()[:12], 16)

    def _number(self, mesh: "DeviceMesh", sharded_dims: int) -> int:
        for number, (known, dims) in enumerate(self._different):
            if dims == sharded_dims and (mesh is known or mesh == known):
                return number
        self._different.append((mesh, sharded_dims))
        return len(self._different) - 1

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Inside, an error is told to the other ranks, unless they know already."""
        try:
            yield
        except BaseException:
            if self.is_owed:
                self.found_inf = 0.0  # it may be what is wrong
                with contextlib.suppress(Exception):  # says that this rank has failed
                    self.exchange(self.zeros(), has_failed=True)
            raise

    def norm(self) -> Tensor:
        """Of all ranks' gradients, once the sums are exchanged: float64, no dimensions."""
        values = self.contributions
        assert values is not None
        if self.is_max:
            return values.max()
        return values.sum().sqrt() if self.norm_type == 2 else values.sum() ** (1 / self.norm_type)

    def zeros(self) -> Tensor:
        """The sums of a rank without gradients."""
        return torch.zeros(1 + len(self._different), dtype=torch.float64)

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
        own = [dist.get_rank(), self._plan, *(_first_rank(*place) for place in self._different)]
        flags = [has_failed, takes_torch, redistributed]
        if self.device.type != "cpu":
            return self._exchange_on_device(own, sums, flags)
        values = [*own, *sums.tolist(), float(self.found_inf), *map(float, flags)]
        values[-NUM_FLAGS:-NUM_FLAGS] = [0.0] * (-len(values) % _WIDTH)
        self.is_owed, self.is_done = False, True
        rows = gather_rows(torch.tensor(values, dtype=torch.float64), self._groups).tolist()
        problem = self._problem(rows)
        contributions = []
        for number in range(len(self._different)) if problem is None else ():
            contributions += self._of_replicas(self._parts(rows, number))
        if self.group is None:
            told = [(row[0], *row[-NUM_FLAGS:]) for row in rows]
            if problem is None:
                contributions += self._of_replicas([(row[0], row[self._plain]) for row in rows])
        else:
            contributions, told = self._over_group(rows, float(sums[0]), contributions, problem)
        if problem is not None:
            raise RuntimeError(f"fused_optim.{self.name}: {problem}. Nothing was changed.")
        _check_none_has_failed(self.name, [(row[0], row[2]) for row in told], "this step")
        self.contributions = torch.tensor(contributions, dtype=torch.float64)
        self.has_overflowed = any(row[1] != 0 for row in told)
        self.is_owed = any(row[3] for row in told) and not is_last
        if self.is_owed and not takes_torch:
            return None
        return self.contributions, self.has_overflowed

    @property
    def _plain(self) -> int:
        """Where in a row the sum of plain tensors is."""
        return 2 + len(self._different)

    def _parts(self, rows: list[list[float]], number: int) -> list[tuple[float, float]]:
        """(the name of the replica, this rank's sum for it) of the ranks that have a placement."""
        parts = ((row[2 + number], row[self._plain + 1 + number]) for row in rows)
        return [(name, value) for name, value in parts if name >= 0]

    def _over_group(
        self,
        rows: list[list[float]],
        plain: float,
        contributions: list[float],
        problem: str | None,
    ) -> tuple[list[float], list[tuple[float, ...]]]:
        """What several ranks have together is given by the first of them."""
        shared = contributions if rows[0][0] == dist.get_rank() else []
        status = [_largest(flag) for flag in zip(*(row[-NUM_FLAGS:] for row in rows), strict=True)]
        status[1] = max(status[1], float(problem is not None))
        given = [dist.get_rank(), self._combined([plain, *shared]), *status]
        assert self.group is not None
        over = gather_rows(torch.tensor(given, dtype=torch.float64), [self.group]).tolist()
        return [row[1] for row in over], [(row[0], *row[2:]) for row in over]

    def _exchange_on_device(
        self, own: list[int], sums: Tensor, flags: Sequence[float]
    ) -> tuple[Tensor, bool | Tensor]:
        on_device = NormOnDevice(self.device, len(self._different), self.is_max)
        row = on_device.row(own, sums, self.found_inf, flags, _WIDTH)
        self.is_owed, self.is_done = False, True
        contributions, ranks, status = on_device.conclude(row, self._groups, self.group)
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

    def _problem(self, rows: list[list[float]]) -> str | None:
        """What ranks should have alike and don't."""
        if len({(len(row), row[1]) for row in rows}) > 1:
            return "ranks that share a mesh have parameters that are placed differently"
        if any(row[-NUM_FLAGS + 1] for row in rows):
            return None  # a rank that has failed gives zeros
        if len({row[-1] for row in rows}) > 1:
            return "the ranks' gradients are placed differently"
        if self.group is not None:
            return None
        parts = [self._parts(rows, number) for number in range(len(self._different))]
        parts.append([(row[0], row[self._plain]) for row in rows])
        if any(sum(value > 0 for value in self._of_replicas(part)) > 1 for part in parts):
            return (
                "ranks that share a mesh have gradients of other norms for parameters outside it, "
                "or that it replicates, so that they are no replicas of one another: their norm "
                "needs a norm_group, or DTensors that say how they are placed"
            )
        return None


def _largest(values: Iterable[float]) -> float:
    """NaN, where one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)
