"""``--memory``: what an optimizer's states hold, and what its calls allocate at their peak.

A state dict is torch's whatever the states are: those in 8 bits are float32 in it, so saving and
loading take memory for a while where training takes less.
"""

import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from benchmarks import memory
from benchmarks.kept import FLOAT32, FORMATS, Kept
from benchmarks.measure import make_groups
from benchmarks.peers import OURS, bytes_moved, implementations, refusal
from benchmarks.workloads import Workload

#: The optimizers that are measured unless the command line says which.
OPTIMIZERS = ["AdamW", "SGD+momentum", "RMSprop", "Lion"]
#: Four tensors of a million elements: one of them at a time is a quarter of it all.
WORKLOAD = Workload("4 x 1M", [[(1024, 1024)] * 4])
#: The columns of a row, bytes an element.
MEMORY = ["states", "step", "state_dict", "load_state_dict"]


def nbytes(tensor: Any) -> int:
    """Bytes of a tensor, those inside of a tensor subclass too."""
    if not isinstance(tensor, torch.Tensor):
        return 0
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(nbytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def measure_one(
    build: Callable[..., Any], kept: Kept, workload: Workload, device: str
) -> dict[str, float]:
    """The columns of one row."""
    optimizer, fresh = (build(make_groups(workload, device, kept.dtype)) for _ in range(2))
    for _ in range(2):  # the first makes states
        optimizer.step()
    states = sum(nbytes(t) for state in optimizer.state.values() for t in state.values())
    step, _ = memory.profiled(optimizer.step, device)
    saved: list[dict[str, Any]] = []
    saving, _ = memory.profiled(lambda: saved.append(optimizer.state_dict()), device)
    gc.collect()
    loading, _ = memory.profiled(lambda: fresh.load_state_dict(saved[0]), device)
    seen = (states, step, saving, loading)
    return {n: b / workload.elements for n, b in zip(MEMORY, seen, strict=True)}


def measure_footprint(
    optimizer: str, device: str, workload: Workload = WORKLOAD
) -> list[dict[str, Any]]:
    """A row for each of our formats that the optimizer can have, and for each other implementation
    that compiles nothing, in float32."""
    rows = []
    for kept in FORMATS:
        if refusal(optimizer, kept):
            continue
        for implementation in implementations(optimizer, device, compiled=False, kept=kept):
            is_ours = implementation.name == OURS
            if not is_ours and kept != FLOAT32:
                continue
            row = {
                "optimizer": optimizer,
                "implementation": implementation.name,
                **asdict(kept),
                **measure_one(implementation.build, kept, workload, device),
                "moved": bytes_moved(optimizer, kept, workload.sizes) if is_ours else None,
            }
            rows.append(row)
    return rows


def memory_table(rows: list[dict[str, Any]]) -> Table:
    """What optimizers hold, and what their calls allocate besides."""
    table = Table(title="bytes an element: states, and what a call allocates at its peak")
    for column in ("optimizer", "implementation", "tensors"):
        table.add_column(column, no_wrap=True)
    for column in (*MEMORY, "step moves"):
        table.add_column(column, justify="right")
    for row in rows:
        name = Kept.of_row(row).name
        moved = "-" if row["moved"] is None else f"{row['moved']:.4g}"
        cells = (f"{row[column]:.3g}" for column in MEMORY)
        table.add_row(row["optimizer"], row["implementation"], name, *cells, moved)
    return table
