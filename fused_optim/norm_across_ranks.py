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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from fused_optim.rows_of_ranks import device_for, gather_rows, groups_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["NormAcrossRanks", "ToldLater"]

#: Gradients that differ by more are no replicas of one another. Reductions give all ranks the same
#: bits, and bfloat16 rounds by 0.4% an element at most.
_REPLICAS_DIFFER = 0.01

#: Overflow, failed, takes torch's step, redistributes gradients.
_NUM_FLAGS = 4

_first_ranks: "weakref.WeakKeyDictionary[DeviceMesh, int]" = weakref.WeakKeyDictionary()


def _first_rank(mesh: "DeviceMesh") -> int:
    """The lowest rank, which names an instance of a mesh; -1 where this rank is not in it."""
    if mesh.get_coordinate() is None:
        return -1
    if mesh not in _first_ranks:
        _first_ranks[mesh] = int(mesh.mesh.min())
    return _first_ranks[mesh]


def _numbers(values: Sequence[float], device: torch.device) -> Tensor:
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
    return numbers.to(device, non_blocking=True)


class ToldLater:
    """Which ranks have failed, on its way from a device that the host does not wait for."""

    def __init__(self, ranks: Tensor, failed: Tensor) -> None:
        self._told = torch.empty(2, len(ranks), dtype=torch.float64, pin_memory=True)
        self._told.copy_(torch.stack([ranks, failed]), non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def check(self, name: str) -> None:
        """Raises RuntimeError if a rank has failed in the step before, which the device has done by
        now."""
        self._event.synchronize()
        _check_none_has_failed(name, *self._told, "the step before")


def _check_none_has_failed(name: str, ranks: Tensor, failed: Tensor, which: str) -> None:
    who = ", ".join(str(int(rank)) for rank in ranks[failed != 0])
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
        rank, device, count = dist.get_rank(), self.device, len(self.meshes)
        sums = sums.to(device)
        overflow = torch.as_tensor(self.found_inf).to(device, torch.float64).reshape(1)
        names = _numbers([rank, *map(_first_rank, self.meshes)], device)
        flags = _numbers([has_failed, takes_torch, redistributed], device)
        rows = gather_rows(torch.cat([names, sums, overflow, flags]), self._groups)
        ranks, instances, plain, of_meshes, status = rows.split([1, count, 1, count, _NUM_FLAGS], 1)
        parts = [
            _of_one_instance(instances[:, i], of_meshes[:, i], self.is_max) for i in range(count)
        ]
        problem = self._problem(plain if self.group is None else None, instances, of_meshes, status)
        if self.group is None:
            contributions = torch.cat([*parts, plain.max()[None]])
        else:
            # What several ranks have together is given by the first of them.
            shared = _combined(torch.cat(parts), self.is_max) if parts else sums[:0]
            is_first = ranks[0, 0] == rank
            given = _combined(
                torch.cat([sums[:1], torch.where(is_first, shared, 0.0)]), self.is_max
            )
            status = status.amax(0)
            if problem:
                status[1] = 1.0
            rows = gather_rows(torch.cat([names[:1], given, status]), [self.group])
            ranks, contributions, status = rows.split([1, 1, _NUM_FLAGS], 1)
        if problem:
            raise RuntimeError(f"fused_optim.{self.name}: {problem}. Nothing was changed.")
        return self._conclude(
            ranks[:, 0], contributions.flatten().contiguous(), status, takes_torch
        )

    def _problem(
        self, replicas: Tensor | None, instances: Tensor, of_meshes: Tensor, status: Tensor
    ) -> str | None:
        """What ranks should have alike and don't, as far as the host knows."""
        if status.device.type != "cpu" or bool(
            status[:, 1].any()
        ):  # one that has failed gives zeros
            return None
        if status[:, 3].min() != status[:, 3].max():
            return "the ranks' gradients are placed differently"
        tolerance = _REPLICAS_DIFFER * (1.0 if self.is_max else max(1.0, self.norm_type))
        sums = [
            _sums_of_instances(*c, self.is_max) for c in zip(instances.T, of_meshes.T, strict=True)
        ]
        for values in sums if replicas is None else [*sums, replicas]:
            known = values[(values > 0) & values.isfinite()]
            if len(known) and known.max() - known.min() > tolerance * known.max():
                return (
                    "ranks that share a mesh have gradients of other norms for parameters outside "
                    "it, which are no replicas of one another then: their norm needs a norm_group, "
                    "or DTensors that say how they are placed"
                )
        return None

    def _conclude(
        self, ranks: Tensor, contributions: Tensor, status: Tensor, takes_torch: bool
    ) -> tuple[Tensor, bool | Tensor] | None:
        overflow, failed, torchs, redistributed = status.unbind(1)
        self.contributions = contributions
        if status.device.type != "cpu":
            if not torch.cuda.is_current_stream_capturing():
                self.told_later = ToldLater(ranks, failed)
            self.has_overflowed = ((overflow != 0) | (failed != 0)).any().float()[None]
            return contributions, self.has_overflowed
        _check_none_has_failed(self.name, ranks, failed, "this step")
        self.has_overflowed = bool((overflow != 0).any())
        self.redistributes = bool(redistributed.any())
        if bool(torchs.any()) and not takes_torch:
            return None
        return contributions, self.has_overflowed


def _sums_of_instances(instances: Tensor, values: Tensor, is_max: bool) -> Tensor:
    """By the lowest rank of each instance of a mesh."""
    sums = values.new_zeros(dist.get_world_size())
    places = instances.clamp(min=0).long()
    return sums.scatter_reduce_(0, places, values, "amax" if is_max else "sum")


def _of_one_instance(instances: Tensor, values: Tensor, is_max: bool) -> Tensor:
    """The values of one instance of a mesh, zero for ranks in others, which hold replicas: of the
    one with the most, as an instance may lack gradients."""
    # Rounded, so that the order of an addition can't decide.
    most = _sums_of_instances(instances, values, is_max).float().argmax()
    return torch.where(instances == most, values, 0.0)


def _combined(values: Tensor, is_max: bool) -> Tensor:
    """Their sum, on the host the same in whatever order, or the largest of them; one element."""
    if is_max:
        return values.max()[None]
    if values.device.type == "cpu" and bool(values.isfinite().all()):
        return values.new_tensor([math.fsum(values.tolist())])
    return values.sum()[None]
