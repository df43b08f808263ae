"""A norm over several ranks: which of them have a part, and one exchange that makes it whole.

Under FSDP2, tensor or expert parallelism parameters are DTensors, and a rank has parts of their
gradients. What is exchanged, and with whom, follows from the parameters alone, never from which of
them have gradients: each rank takes part once in a step, with zeros where it has none, and also
where it has met with an error, which it then tells. So no rank waits for another one that does not
come, and all of them skip, fail, or take torch's step together.
"""

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim.norm_on_device import NUM_FLAGS, NormOnDevice
from fused_optim.rows_of_ranks import device_for, gather_rows, groups_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["NormAcrossRanks", "ToldLater"]

#: Gradients that differ by more are no replicas of one another. Reductions give all ranks the same
#: bits, and bfloat16 rounds by 0.4% an element at most.
_REPLICAS_DIFFER = 0.01

_first_ranks: "weakref.WeakKeyDictionary[DeviceMesh, int]" = weakref.WeakKeyDictionary()


def _first_rank(mesh: "DeviceMesh") -> int:
    """The lowest rank, which names an instance of a mesh; -1 where this rank is not in it."""
    if mesh.get_coordinate() is None:
        return -1
    if mesh not in _first_ranks:
        _first_ranks[mesh] = int(mesh.mesh.min())
    return _first_ranks[mesh]


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
        meshes: of the parameters, in the order of the parameters, each object once.
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
        meshes: "Sequence[DeviceMesh]",
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
        #: Whether the ranks have exchanged what they had.
        self.is_done = False
        #: What the norm is made of, the same on all ranks: sums of powers, or largest values.
        self.contributions: Tensor | None = None
        self.has_overflowed: bool | Tensor = False
        #: Whether gradients are redistributed first, for torch's step, and the norm is taken anew.
        self.redistributes = False
        self.told_later: ToldLater | None = None
        self.meshes: list[DeviceMesh] = []  # that are not equal
        #: (mesh, its number among those, this rank's coordinate in it).
        self.places = tuple(
            (mesh, self._number(mesh), tuple(mesh.get_coordinate() or ())) for mesh in meshes
        )
        self._groups = groups_of(self.meshes)
        groups = self._groups if group is None else [*self._groups, group]
        #: Where sums are exchanged.
        self.device = device_for(groups, device)
        members = set(dist.get_process_group_ranks(groups[-1])) if groups else set()
        if group and any(set(dist.get_process_group_ranks(g)) - members for g in groups):
            raise RuntimeError(
                f"fused_optim.{name}: norm_group lacks ranks of the parameters' meshes"
            )

    def _number(self, mesh: "DeviceMesh") -> int:
        for number, known in enumerate(self.meshes):
            if mesh is known or mesh == known:
                return number
        self.meshes.append(mesh)
        return len(self.meshes) - 1

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Inside, an error is told to the other ranks, unless they know already."""
        try:
            yield
        except BaseException:
            if not self.is_done:
                with contextlib.suppress(RuntimeError):  # says that this rank has failed
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
        return torch.zeros(1 + len(self.meshes), dtype=torch.float64)

    def exchange(
        self,
        sums: Tensor,
        has_failed: bool = False,
        takes_torch: bool = False,
        redistributed: int = 0,
    ) -> tuple[Tensor, bool | Tensor] | None:
        """Gives this rank's part for what all ranks have.

        Args:
            sums (Tensor): of the powers that ``norm_type`` says of plain tensors' gradients, then
                of each mesh's, float64; the largest absolute values for infinity.
            has_failed (bool): nothing is to be done on any rank.
            takes_torch (bool): this rank's step is torch's own.
            redistributed (int): which gradients are redistributed first, as a number that is the
                same on all ranks; 0 for none.

        Returns:
            What the norm is made of, and whether any rank's AMP has found an overflow: on a device
            as a tensor, which is also set where a rank has failed. None if another rank takes
            torch's step, so that all have to.

        Raises:
            RuntimeError: if a rank has failed, or if ranks have no replicas where they should.
        """
        self.is_done = True
        own = [dist.get_rank(), *map(_first_rank, self.meshes)]
        flags = [has_failed, takes_torch, redistributed]
        if self.device.type == "cpu":
            values = [*own, *sums.tolist(), float(self.found_inf), *flags]
            rows = gather_rows(torch.tensor(values, dtype=torch.float64), self._groups)
            return self._on_host(rows.tolist(), float(sums[0]), takes_torch)
        on_device = NormOnDevice(self.device, len(self.meshes), self.is_max)
        row = on_device.row(own, sums, self.found_inf, flags)
        contributions, ranks, status = on_device.conclude(row, self._groups, self.group)
        self.contributions = contributions
        self.has_overflowed = ((status[:, 0] != 0) | (status[:, 1] != 0)).any().float()[None]
        if not torch.cuda.is_current_stream_capturing():
            self.told_later = ToldLater(ranks, status[:, 1])
        return contributions, self.has_overflowed

    def _on_host(
        self, rows: list[list[float]], plain: float, takes_torch: bool
    ) -> tuple[Tensor, bool | Tensor] | None:
        count = len(self.meshes)
        contributions = []
        for number in range(count):
            parts = [(row[1 + number], row[2 + count + number]) for row in rows]
            contributions += self._of_one_instance(parts)
        problem = self._problem(rows)
        if self.group is None:
            contributions.append(_largest(row[1 + count] for row in rows))
            told = [(row[0], *row[-NUM_FLAGS:]) for row in rows]
        else:
            # What several ranks have together is given by the first of them.
            shared = self._combined(contributions) if rows[0][0] == dist.get_rank() else 0.0
            status = [
                _largest(column) for column in zip(*(r[-NUM_FLAGS:] for r in rows), strict=True)
            ]
            status[1] = max(status[1], float(problem is not None))
            given = [dist.get_rank(), self._combined([plain, shared]), *status]
            over = gather_rows(torch.tensor(given, dtype=torch.float64), [self.group]).tolist()
            contributions = [row[1] for row in over]
            told = [(row[0], *row[2:]) for row in over]
        if problem is not None:
            raise RuntimeError(f"fused_optim.{self.name}: {problem}. Nothing was changed.")
        _check_none_has_failed(self.name, [(row[0], row[2]) for row in told], "this step")
        self.contributions = torch.tensor(contributions, dtype=torch.float64)
        self.has_overflowed = any(row[1] != 0 for row in told)
        self.redistributes = any(row[4] != 0 for row in told)
        if any(row[3] for row in told) and not takes_torch:
            return None
        return self.contributions, self.has_overflowed

    def _combined(self, values: Sequence[float]) -> float:
        return _largest(values) if self.is_max else sum(values)

    def _of_instances(self, parts: list[tuple[float, float]]) -> dict[float, float]:
        """What each instance of a mesh has, by its lowest rank."""
        found: dict[float, list[float]] = {}
        for instance, value in parts:
            if instance >= 0:
                found.setdefault(instance, []).append(value)
        return {instance: self._combined(values) for instance, values in found.items()}

    def _of_one_instance(self, parts: list[tuple[float, float]]) -> list[float]:
        """The values of one instance of a mesh, zero for ranks in others, which hold replicas: of
        the one with the most, as an instance may lack gradients."""
        found = self._of_instances(parts)
        most = next(i for i, value in found.items() if _is_same(value, _largest(found.values())))
        return [value if instance == most else 0.0 for instance, value in parts]

    def _problem(self, rows: list[list[float]]) -> str | None:
        """What ranks should have alike and don't."""
        count = len(self.meshes)
        if any(row[-NUM_FLAGS + 1] for row in rows):
            return None  # a rank that has failed gives zeros
        if len({row[-1] for row in rows}) > 1:
            return "the ranks' gradients are placed differently"
        replicas = [
            self._of_instances([(row[1 + i], row[2 + count + i]) for row in rows]).values()
            for i in range(count)
        ]
        if self.group is None:
            replicas.append({row[0]: row[1 + count] for row in rows}.values())
        tolerance = _REPLICAS_DIFFER * (1.0 if self.is_max else max(1.0, self.norm_type))
        for values in replicas:
            known = [value for value in values if value > 0 and math.isfinite(value)]
            if known and max(known) - min(known) > tolerance * max(known):
                return (
                    "ranks that share a mesh have gradients of other norms for parameters outside "
                    "it, which are no replicas of one another then: their norm needs a norm_group, "
                    "or DTensors that say how they are placed"
                )
        return None


def _is_same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _largest(values: Iterable[float]) -> float:
    """NaN, where one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)
