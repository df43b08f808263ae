"""The implementations that are compared: fused_optim, torch's three, and peers if installed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import fused_optim

OURS = "fused_optim"

#: Optimizers by the name that tables show: class name, options, bytes a step moves an element
#: in float32 (each tensor read once, each but the gradient written once).
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "SGD+momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}, 20),
    "Adam": ("Adam", {}, 28),
    "AdamW": ("AdamW", {}, 28),
    "RMSprop": ("RMSprop", {}, 20),
}


@dataclass(frozen=True)
class Implementation:
    """One implementation of one optimizer."""

    name: str
    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

    @property
    def is_torch(self) -> bool:
        return self.name.startswith("torch")


def implementations(optimizer: str, device: str) -> Iterator[Implementation]:
    """All implementations of an optimizer for this device that can be imported here."""
    class_name, options, _ = OPTIMIZERS[optimizer]
    fused_class = getattr(fused_optim, class_name)
    torch_class = getattr(torch.optim, class_name)
    yield Implementation(OURS, lambda groups: fused_class(groups, **options))
    yield Implementation("torch for-loop", lambda g: torch_class(g, foreach=False, **options))
    yield Implementation("torch foreach", lambda g: torch_class(g, foreach=True, **options))
    if "fused" in torch_class([torch.zeros(1)]).defaults:
        yield Implementation("torch fused", lambda g: torch_class(g, fused=True, **options))
    if device == "cpu":
        yield from deepspeed(class_name, options)


def deepspeed(class_name: str, options: dict[str, Any]) -> Iterator[Implementation]:
    """DeepSpeed's CPUAdam, which is Adam and, with adamw_mode, AdamW."""
    if class_name not in ("Adam", "AdamW"):
        return
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    except Exception:  # absent, or its own build fails: listed as absent
        return
    adamw = class_name == "AdamW"
    yield Implementation(
        "DeepSpeed CPUAdam", lambda g: DeepSpeedCPUAdam(g, adamw_mode=adamw, **options)
    )
