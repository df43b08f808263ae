"""The implementations that are compared: fused_optim, torch's own, and peers where installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import fused_optim
from benchmarks.kept import FLOAT32, Kept, bytes_of
from fused_optim import _C
from fused_optim.optimizer import FUSED_CLASSES

OURS = "fused_optim"
FOR_LOOP = "torch for-loop"
FUSED = "torch fused"

#: What a fused class is compared with as "torch": the class that it replaces, or for one that torch
#: lacks, the one in PyTorch operations that it falls back to.
PARENTS = {fused.__name__: parent for parent, fused in FUSED_CLASSES.items()}

#: Where it takes more than a class's defaults: by the name that tables show, class name and
#: options. Options are spelled out where a peer's defaults differ from torch's.
_SPELLED_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD+momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "Adam": ("Adam", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
    "AdamW": ("AdamW", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
    "RMSprop": ("RMSprop", {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}),
    "Lion": ("Lion", {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}),
}


def _states(name: str, options: dict[str, Any]) -> list[str]:
    """The states of the parameter's shape."""
    param = torch.zeros(2, requires_grad=True)
    param.grad = torch.zeros(2)
    optimizer = getattr(fused_optim, name)([param], **options)
    optimizer.step()
    return [k for k, state in optimizer.state[param].items() if state.shape == param.shape]


def _optimizers() -> dict[str, tuple[str, dict[str, Any], list[str]]]:
    spelled_out = {name for name, _ in _SPELLED_OUT.values()}
    rest = {name: (name, {}) for name in sorted(PARENTS) if name not in spelled_out}
    everyone = {**_SPELLED_OUT, **rest}
    return {label: (*entry, _states(*entry)) for label, entry in everyone.items()}


#: All fused optimizers: class name, options, names of the states of the parameter's shape.
OPTIMIZERS = _optimizers()


def refusal(optimizer: str, kept: Kept) -> str | None:
    """Why our class doesn't keep tensors so, if it doesn't."""
    if kept.master_bits is not None and kept.dtype != "bfloat16":
        return f"{kept.dtype} parameters have no masters, bfloat16 ones do"
    if kept.state_dtype != "int8":
        return None
    if kept.dtype == "float64":
        return "states of float64 parameters can't be in 8 bits"
    name, _, states = OPTIMIZERS[optimizer]
    can = dict(_C.moments(getattr(fused_optim, name)._rule))
    refused = [state for state in states if state not in can]
    return f"{optimizer}'s {refused[0]} can't be in 8 bits" if refused else None


#: A tensor that is large enough for whatever format.
LARGE = [1 << 20]


def _mean_state_bytes(kept: Kept, sizes: list[int]) -> float:
    """Of tensors with so many elements each: small ones keep float32 states."""
    return sum(n * kept.state_bytes(n) for n in sizes) / max(1, sum(sizes))


def bytes_moved(optimizer: str, kept: Kept, sizes: list[int] = LARGE) -> float:
    """Bytes a step moves an element, of tensors with so many elements each: the gradient's once,
    all others twice."""
    states = len(OPTIMIZERS[optimizer][2]) * _mean_state_bytes(kept, sizes)
    return 3 * bytes_of(kept.dtype) + 2 * kept.remainder_bytes + 2 * states


def bytes_held(optimizer: str, kept: Kept, sizes: list[int] = LARGE) -> float:
    """Bytes an element that parameter, gradient and states take."""
    states = len(OPTIMIZERS[optimizer][2]) * _mean_state_bytes(kept, sizes)
    return 2 * bytes_of(kept.dtype) + kept.remainder_bytes + states


@dataclass(frozen=True)
class Implementation:
    """One implementation of one optimizer; `build` makes it from parameter groups."""

    name: str
    build: Callable[[list[dict[str, Any]]], Any]
    max_tensors: int | None = None


@dataclass(frozen=True)
class Peer:
    """Another library: for each of torch's class names, its own class and what to add."""

    devices: tuple[str, ...]
    classes: dict[str, tuple[str, dict[str, Any]]]
    #: Above this many tensors its compilation takes minutes, and it is left out.
    max_tensors: int | None = None
    package: str = field(init=False)

    def __post_init__(self) -> None:
        path = next(iter(self.classes.values()))[0]
        object.__setattr__(self, "package", path.partition(".")[0].partition(":")[0])

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


PEERS = {
    "DeepSpeed CPUAdam": Peer(
        ("cpu",),
        {
            "Adam": ("deepspeed.ops.adam:DeepSpeedCPUAdam", {"adamw_mode": False}),
            "AdamW": ("deepspeed.ops.adam:DeepSpeedCPUAdam", {"adamw_mode": True}),
        },
    ),
    "DeepSpeed FusedAdam": Peer(
        ("cuda",),
        {
            "Adam": ("deepspeed.ops.adam:FusedAdam", {"adam_w_mode": False}),
            "AdamW": ("deepspeed.ops.adam:FusedAdam", {"adam_w_mode": True}),
        },
    ),
    "Apex": Peer(
        ("cuda",),
        {
            "Adam": ("apex.optimizers:FusedAdam", {"adam_w_mode": False}),
            "AdamW": ("apex.optimizers:FusedAdam", {"adam_w_mode": True}),
            "SGD": ("apex.optimizers:FusedSGD", {}),
        },
    ),
    "Transformer Engine": Peer(
        ("cuda",),
        {
            "Adam": ("transformer_engine.pytorch.optimizers:FusedAdam", {"adam_w_mode": False}),
            "AdamW": ("transformer_engine.pytorch.optimizers:FusedAdam", {"adam_w_mode": True}),
            "SGD": ("transformer_engine.pytorch.optimizers:FusedSGD", {}),
        },
    ),
    "bitsandbytes": Peer(
        ("cpu", "cuda"),
        {
            "SGD": ("bitsandbytes.optim:SGD32bit", {}),
            "Adam": ("bitsandbytes.optim:Adam32bit", {}),
            "AdamW": ("bitsandbytes.optim:AdamW32bit", {}),
            "RMSprop": ("bitsandbytes.optim:RMSprop32bit", {}),
            "Lion": ("bitsandbytes.optim:Lion32bit", {}),
        },
    ),
    "bitsandbytes 8-bit": Peer(
        ("cpu", "cuda"),
        {
            "SGD": ("bitsandbytes.optim:SGD8bit", {}),
            "Adam": ("bitsandbytes.optim:Adam8bit", {}),
            "AdamW": ("bitsandbytes.optim:AdamW8bit", {}),
            "RMSprop": ("bitsandbytes.optim:RMSprop8bit", {}),
            "Lion": ("bitsandbytes.optim:Lion8bit", {}),
        },
    ),
    "torchao 8-bit": Peer(
        ("cpu", "cuda"),
        {
            "Adam": ("torchao.optim:Adam8bit", {}),
            "AdamW": ("torchao.optim:AdamW8bit", {}),
        },
        max_tensors=10,
    ),
    "optimi": Peer(
        ("cpu", "cuda"),
        {
            "SGD": ("optimi:SGD", {}),
            "Adam": ("optimi:Adam", {}),
            "AdamW": ("optimi:AdamW", {}),
            "Lion": ("optimi:Lion", {}),
        },
    ),
}


def absent(device: str) -> list[str]:
    """Names of the peers for this device that are not installed."""
    return [n for n, peer in PEERS.items() if device in peer.devices and not peer.is_installed]


def implementations(
    optimizer: str, device: str, compiled: bool = True, kept: Kept = FLOAT32
) -> Iterator[Implementation]:
    """All implementations of an optimizer for this device that are installed here; on request
    without those that torch.compile has to compile first, and ours with fewer bytes."""
    for implementation in _implementations(optimizer, device, kept):
        if compiled or implementation.max_tensors is None:
            yield implementation


def _implementations(optimizer: str, device: str, kept: Kept) -> Iterator[Implementation]:
    name, options, _ = OPTIMIZERS[optimizer]
    fused_class, torch_class = getattr(fused_optim, name), PARENTS[name]
    yield Implementation(OURS, lambda groups: fused_class(groups, **options, **kept.options))
    yield Implementation(FOR_LOOP, lambda g: torch_class(g, foreach=False, **options))
    yield Implementation("torch foreach", lambda g: torch_class(g, foreach=True, **options))
    if "fused" in torch_class([torch.zeros(1)]).defaults:
        yield Implementation(FUSED, lambda g: torch_class(g, fused=True, **options))
    yield Implementation("torch.compile", lambda g: _compiled(torch_class(g, **options)), 120)
    for peer_name, peer in PEERS.items():
        if device in peer.devices and name in peer.classes and peer.is_installed:
            yield Implementation(peer_name, _builder(peer, name, options), peer.max_tensors)


def _builder(peer: Peer, name: str, options: dict[str, Any]) -> Callable[..., Any]:
    path, more = peer.classes[name]

    def build(groups: list[dict[str, Any]]) -> Any:
        module, _, cls = path.partition(":")
        return getattr(importlib.import_module(module), cls)(groups, **options, **more)

    return build


def _compiled(optimizer: torch.optim.Optimizer) -> Any:
    """torch's optimizer with its step compiled."""
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def wrong(implementation: Implementation, dtype: str, device: str) -> str | None:
    """Why a step is not the optimizer's, if it is not: its time is no measure for others.

    torch's fused SGD on the CPU leaves whole vectors of bfloat16 and float16 parameters unchanged,
    so it is fast by not writing them. Whether it does in this torch, a step of it tells. The others
    are not tried: accuracy.py looks at them, and some would have to be compiled.
    """
    if implementation.name != FUSED:
        return None
    param = torch.zeros(100, dtype=getattr(torch, dtype), device=device, requires_grad=True)
    param.grad = torch.ones_like(param)
    implementation.build([{"params": [param]}]).step()
    return None if param.all() else "leaves elements unchanged (pytorch#191763), not counted"
