"""That a rank has failed, as the other ranks learn of it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fused_optim.norm_on_device import MISFIT

__all__ = ["ToldLater", "check_none_has_failed"]


class ToldLater:
    """Which ranks have failed, on its way from a device that the host does not wait for."""

    def __init__(self, ranks: Tensor, failed: Tensor) -> None:
        self._told = torch.empty(2, len(ranks), dtype=torch.float64, pin_memory=True)
        self._told.copy_(torch.stack([ranks, failed]), non_blocking=True)
        make_event: Any = torch.cuda.Event
        self._event = make_event()
        self._event.record()

    def says_failed(self) -> bool:
        """Whether a rank has failed in the step before, which the device has done by now."""
        return any(failed != 0 for _, failed in self._read())

    def check(self, name: str) -> None:
        """Raises RuntimeError if a rank has failed in the step before."""
        told = self._read()
        if any(failed >= MISFIT for _, failed in told):
            raise RuntimeError(
                f"fused_optim.{name}: in the step before, ranks that share a norm had parameters "
                "that are placed differently, another max_grad_norm, skip_nonfinite or norm_group, "
                "or no replicas where they should. Nothing was changed."
            )
        check_none_has_failed(
            name, (rank for rank, failed in told if failed != 0), "the step before"
        )

    def _read(self) -> list[list[float]]:
        """(rank, whether it failed) of each."""
        self._event.synchronize()
        told: list[list[float]] = self._told.T.tolist()
        return told


def check_none_has_failed(name: str, failed: Iterable[float], which: str) -> None:
    """Raises RuntimeError that names them if any ranks have failed.

    Args:
        name: the optimizer's.
        failed: the ranks' numbers.
        which: step it was.
    """
    who = ", ".join(str(int(rank)) for rank in sorted(set(failed)))
    if who:
        raise RuntimeError(
            f"fused_optim.{name}: {which} met with an error on rank {who}, which names it; so no "
            "rank that shares the norm of the gradients did it. Nothing was changed."
        )
