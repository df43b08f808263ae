"""One row of numbers from each rank, gathered on all ranks that process groups connect."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["all_gathered", "device_for", "gather_rows", "groups_of"]

#: By its name since torch 2.13, or before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def groups_of(meshes: "Iterable[DeviceMesh]") -> "list[ProcessGroup]":
    """The process groups of the meshes' dimensions, without those whose ranks others have, too."""
    groups: list[ProcessGroup] = []
    ranks: list[set[int]] = []
    for mesh in meshes:
        if mesh.get_coordinate() is None:  # this rank is not in it
            continue
        for dim in range(mesh.ndim):
            group = mesh.get_group(dim)
            members = set(dist.get_process_group_ranks(group))
            if not any(members <= others for others in ranks):
                groups.append(group)
                ranks.append(members)
    kept = [i for i, members in enumerate(ranks) if not any(members < others for others in ranks)]
    return [groups[i] for i in kept if len(ranks[i]) > 1]


def device_for(groups: "Sequence[ProcessGroup]", device: torch.device) -> torch.device:
    """Where rows are exchanged: on this device if all groups can, else where the first one does."""
    kinds = [[own.type for own in group._device_types] for group in groups]
    if all(device.type in own for own in kinds):
        return device
    kind = next(own[0] for own in kinds if device.type not in own)
    if kind == "cpu":
        return torch.device(kind)
    return torch.device(kind, torch.accelerator.current_device_index())


def all_gathered(rows: Tensor, group: "ProcessGroup") -> Tensor:
    """The rows of all of the group's ranks, as many of each."""
    gathered = rows.new_empty(group.size() * len(rows), rows.shape[1])
    _all_gather(gathered, rows, group=group)
    return gathered


def gather_rows(row: Tensor, groups: "Iterable[ProcessGroup]") -> Tensor:
    """The rows of all ranks, in the order of their first number, the rank.

    A rank that is reached along two ways, which no grid of ranks has, is there once; the other row
    holds zeros where the device would have to be waited for, else it is left out.

    Args:
        row (Tensor): this rank's, of one dimension.
        groups: one after the other; the same ones on all ranks that are reached.
    """
    rows = row[None]
    for group in groups:
        rows = all_gathered(rows, group)
    rows = rows[rows[:, 0].argsort(stable=True)]
    is_first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    is_first[1:] = rows[1:, 0] != rows[:-1, 0]
    if rows.device.type == "cpu":
        return rows[is_first]
    return torch.where(is_first[:, None], rows, 0.0)
