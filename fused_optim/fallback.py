"""Steps that torch's own implementation takes: which of them a user is told of, and how."""

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["ASKED_FOR", "COMPILED", "OWN_INIT_GROUP", "Fallback", "note"]

_log = logging.getLogger("fused_optim")


class Fallback(NamedTuple):
    """Why a step is not for the kernels, and whether that is what its user expects: it was asked
    for, or is torch's own way."""

    reason: str
    is_expected: bool


ASKED_FOR = Fallback("foreach=True, fused=False or differentiable=True was asked for", True)
COMPILED = Fallback("torch.compile traces torch's own step", True)
OWN_INIT_GROUP = Fallback("an _init_group of its own prepares torch's step", False)


def note(optimizer: "FusedOptimizer", fallback: Fallback | None) -> None:
    """Keeps the reason in ``fallback_reason``, logs each change of it, and warns once of one that
    is not expected.

    Raises:
        RuntimeError: instead of the warning, at each such step, where ``FUSED_OPTIM_STRICT=1``.
    """
    fused = optimizer._fused
    reason = None if fallback is None else fallback.reason
    if reason != fused.fallback_reason:
        fused.fallback_reason = reason
        _log.debug("%s steps with %s", type(optimizer).__name__, reason or "the fused kernels")
    if fallback is None or fallback.is_expected:
        return
    name = f"fused_optim.{optimizer._name}"
    if os.environ.get("FUSED_OPTIM_STRICT") == "1":
        raise RuntimeError(
            f"{name}: FUSED_OPTIM_STRICT=1, and the kernels don't take this step: {reason}"
        )
    if not fused.has_warned:
        warnings.warn(
            f"{name}: this step is torch.optim's own and not fused, since the kernels don't take "
            f"it: {reason}. It is said once; optimizer.fallback_reason says it after each step",
            stacklevel=_frames_below_the_caller(),
        )
        fused.has_warned = True  # not where the warning is raised as an error


def _frames_below_the_caller() -> int:
    """For warnings: how far up the code lies that called the optimizer, beyond torch's wrappers."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(
        ("fused_optim.", "torch.")
    ):
        level, frame = level + 1, frame.f_back
    return level
