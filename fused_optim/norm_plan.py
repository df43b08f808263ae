"""What follows from the parameters of a norm over several ranks: who exchanges what with whom."""

import hashlib
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from fused_optim.grid_of_ranks import GridOfRanks
from fused_optim.rows_of_ranks import device_for, groups_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["NormPlan"]

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


class NormPlan:
    """For parameters that are placed in some ways. Meshes and groups don't change: it holds as long
    as these are the same objects, and torch.distributed is not initialized anew, where a mesh finds
    its groups by their names.

    Args:
        placements: (mesh, a bit for each of its dimensions along which tensors are sharded) of the
            parameters, in their order.
        group (ProcessGroup, optional): over whose ranks plain tensors are shards, and what meshes
            give is summed up.
        device (torch.device): where the parameters are.
        asked (tuple): what is done by the norm, which must be the same on all ranks.
    """

    def __init__(
        self,
        placements: "Sequence[tuple[DeviceMesh, int]]",
        group: "ProcessGroup | None",
        device: torch.device,
        asked: tuple[object, ...],
    ) -> None:
        self.group = group
        self._world = dist.group.WORLD
        self.key = self.key_of(placements, group, device, asked)
        #: Those that are not equal.
        self.different: list[tuple[DeviceMesh, int]] = []
        #: (mesh, sharded dimensions, the number of those that are equal).
        self.placements = tuple((*place, self._number(*place)) for place in placements)
        self.grid = GridOfRanks(groups_of(mesh for mesh, _ in self.different))
        groups = self.grid.groups if group is None else [*self.grid.groups, group]
        #: Where sums are exchanged.
        self.device = device_for(groups, device)
        members = () if group is None else tuple(dist.get_process_group_ranks(group))
        #: The ranks of the group.
        self.members = set(members)
        #: Whether a rank of the parameters' meshes is not in the group.
        self.lacks_ranks = group is not None and any(
            set(dist.get_process_group_ranks(own)) - self.members for own in self.grid.groups
        )
        kinds = [(tuple(mesh.shape), dims) for mesh, dims in self.different]
        #: The same on all ranks of the group.
        self.asked = _number_for(asked)
        plan = _number_for(kinds, self.grid.sizes, hash(members), asked)
        names = [_first_rank(*place) for place in self.different]
        #: What a rank's row begins with: its number, what is the same on all ranks in its place of
        #: their meshes, and the name of each placement's replica.
        self.own = [dist.get_rank(), plan, *names]

    @staticmethod
    def key_of(
        placements: "Sequence[tuple[DeviceMesh, int]]",
        group: "ProcessGroup | None",
        device: torch.device,
        asked: tuple[object, ...],
    ) -> tuple[object, ...]:
        """What tells plans apart, as long as one of them is there and keeps what this names."""
        places = tuple((id(mesh), dims) for mesh, dims in placements)
        return places, id(group), id(dist.group.WORLD), device, asked

    def _number(self, mesh: "DeviceMesh", sharded_dims: int) -> int:
        for number, (known, dims) in enumerate(self.different):
            if dims == sharded_dims and (mesh is known or mesh == known):
                return number
        self.different.append((mesh, sharded_dims))
        return len(self.different) - 1


def _number_for(*what: object) -> int:
    """The same on each rank for the same, and hardly for anything else; float64 holds it."""
    return int(hashlib.sha256(repr(what).encode()).hexdigest()[:12], 16)
