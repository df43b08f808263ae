"""The implementations that are compared: fused_optim, torch's own, and peers where installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import fused_optim
from fused_optim.optimizer import FUSED_CLASSES

OURS = "fused_optim"
FOR_LOOP = "torch for-loop"
FUSED = "torch fused"

#: What parameters, gradients and states are made of.
DTYPES = ["float32", "bfloat16", "float16", "float64"]
#: What our states alone can be made of, whatever the parameters are.
STATE_DTYPES = ["float32", "bfloat16"]

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


def _accesses(name: str, options: dict[str, Any]) -> int:
    """How often a step goes to memory for an element: each tensor is read once, each but the
    gradient written once. States of one element don't count."""
    param = torch.zeros(2, requires_grad=True)
    param.grad = torch.zeros(2)
    optimizer = getattr(fused_optim, name)([param], **options)
    optimizer.step()
    states = sum(state.shape == param.shape for state in optimizer.state[param].values())
    return 3 + 2 * states


def _optimizers() -> dict[str, tuple[str, dict[str, Any], int]]:
    spelled_out = {name for name, _ in _SPELLED_OUT.values()}
    rest = {name: (name, {}) for name in sorted(PARENTS) if name not in spelled_out}
    everyone = {**_SPELLED_OUT, **rest}
    return {label: (*entry, _accesses(*entry)) for label, entry in everyone.items()}


#: All fused optimizers: class name, options, accesses to memory of a step for each element.
OPTIMIZERS = _optimizers()


def bytes_of(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def name_of(dtype: str, state_dtype: str | None = None) -> str:
    """What tables call a dtype of parameters and gradients, and another one of states."""
    return dtype if state_dtype is None else f"{dtype}, states {state_dtype}"


def states_of(optimizer: str) -> int:
    """How many states of the parameter's shape it has."""
    return (OPTIMIZERS[optimizer][2] - 3) // 2


def bytes_moved(optimizer: str, dtype: str, state_dtype: str | None = None) -> int:
    """Bytes a step moves an element: the gradient's once, all others twice."""
    return 3 * bytes_of(dtype) + 2 * states_of(optimizer) * bytes_of(state_dtype or dtype)


def bytes_held(optimizer: str, dtype: str, state_dtype: str | None = None) -> int:
    """Bytes an element that parameter, gradient and states take."""
    return 2 * bytes_of(dtype) + states_of(optimizer) * bytes_of(state_dtype or dtype)


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
    optimizer: str, device: str, compiled: bool = True, state_dtype: str | None = None
) -> Iterator[Implementation]:
    """All implementations of an optimizer for this device that are installed here; on request
    without those that torch.compile has to compile first, and ours with states of another dtype."""
    for implementation in _implementations(optimizer, device, state_dtype):
        if compiled or implementation.max_tensors is None:
            yield implementation


def _implementations(
    optimizer: str, device: str, state_dtype: str | None
) -> Iterator[Implementation]:
    name, options, _ = OPTIMIZERS[optimizer]
    fused_class, torch_class = getattr(fused_optim, name), PARENTS[name]
    own = {} if state_dtype is None else {"state_dtype": getattr(torch, state_dtype)}
    yield Implementation(OURS, lambda groups: fused_class(groups, **options, **own))
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
