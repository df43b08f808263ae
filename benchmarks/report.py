"""What a person reads in the terminal, and what a program reads: tables and JSON."""

import json
import os
import pathlib
import platform
import subprocess
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fused_optim
from benchmarks.footprint import memory_table
from benchmarks.kept import Kept
from benchmarks.measure import ROOFS, Result
from benchmarks.peers import OURS
from benchmarks.training import STEP, VIEWS
from fused_optim import _C

TORCHS = ["torch fused", "torch foreach", "torch for-loop"]


@dataclass
class Content:
    """Everything that a run has found out."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    sweep: list[Result] = field(default_factory=list)
    accuracy: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    busy: list[dict[str, Any]] = field(default_factory=list)
    in_cache: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    sharded: list[dict[str, Any]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def driver_version() -> str:
    """The GPU driver's version, as the kernel module says it."""
    path = pathlib.Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Where and with what the figures were measured."""
    model = "unknown"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, cwd=pathlib.Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    gpu = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": driver_version(),
        }
    return {
        **gpu,
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_set": _C.isa(),
        "torch": torch.__version__,
        "fused_optim": fused_optim.__version__,
        "commit": commit or "unknown",
        "python": platform.python_version(),
    }


def describe(info: dict[str, Any]) -> str:
    gpu = f"{info['gpu']}, driver {info['driver']}, " if "gpu" in info else ""
    return (
        f"{gpu}{info['cpu']}, {info['cores']} cores, {info['threads']} threads, "
        f"{info['instruction_set']}, torch {info['torch']}, commit {info['commit']}"
    )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def size(bytes_: int) -> str:
    for unit in ("B", "kB", "MB"):
        if bytes_ < 1000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000  # type: ignore[assignment]
    return f"{bytes_:.3g} GB"


def names_of(results: list[Result]) -> list[str]:
    """Implementations in the order of columns: ours, torch's, peers."""
    measured = {n for r in results for n in r.samples} - {*ROOFS.values()}
    first = [n for n in (OURS, *TORCHS) if n in measured]
    return first + sorted(measured - {*first})


def time_cell(result: Result, name: str) -> str:
    """Milliseconds a step, in red those of a step that does not do what it should."""
    if name not in result.samples:
        return "-"
    text = milliseconds(result.median(name))
    return f"[bold red]{text} WRONG[/bold red]" if name in result.wrong else text


def step_table(results: list[Result], title: str) -> Table:
    """Medians of every implementation and ours against the best of torch's."""
    names = names_of(results)
    table = Table(title=title)
    for column in ("optimizer", "workload", "dtype"):
        table.add_column(column, no_wrap=True)
    for column in (*names, "ratio", "p10-p90", "GB/s", "of roof"):
        table.add_column(column, justify="right")
    for r in results:
        cells = [time_cell(r, n) for n in names]
        _, low, high = r.quantiles(r.best_torch)
        share = "-" if r.roof_share is None else f"{r.roof_share:.0%}"
        table.add_row(
            r.optimizer, r.workload, r.kept.name, *cells, f"[bold]{r.ratio:.2f}[/bold]",
            f"{low:.2f}-{high:.2f}", f"{r.bandwidth / 1e9:.1f}", share,
        )  # fmt: skip
    return table


def cost_table(results: list[Result]) -> Table:
    """What a step costs besides time: calls for work, memory, and on a GPU the host's time."""
    names = names_of(results)
    on_gpu = any(r.host for r in results)
    calls = "kernel launches" if on_gpu else "torch operators"
    what = f"a step's {calls}, peak extra memory" + (", host time in ms" if on_gpu else "")
    table = Table(title=what)
    for column in ("optimizer", "workload", "dtype", "B/element"):
        table.add_column(column, no_wrap=True)
    for column in names:
        table.add_column(column, justify="right")
    for r in results:
        cells = []
        for name in names:
            if name not in r.calls:
                cells.append("-")
                continue
            parts = [f"{r.calls[name]}", size(r.extra_memory[name])]
            if name in r.host:
                parts.append(milliseconds(sorted(r.host[name])[len(r.host[name]) // 2]))
            cells.append(", ".join(parts))
        moved = f"{r.bytes_per_element:.4g}"
        table.add_row(r.optimizer, r.workload, r.kept.name, moved, *cells)
    return table


def accuracy_table(accuracy: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Errors against float64, those in red that rounding does not explain."""
    names = list(dict.fromkeys(name for rows in accuracy.values() for name in rows))
    table = Table(title="largest error in float32 after 100 steps, against float64")
    table.add_column("optimizer", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for optimizer, rows in accuracy.items():
        cells = []
        for name in names:
            row = rows.get(name)
            if row is None or row["error"] is None:
                cells.append("-" if row is None else "failed")
            else:
                text = f"{row['error']:.1e}"
                cells.append(f"[bold red]{text} WRONG[/bold red]" if row["wrong"] else text)
        table.add_row(optimizer, *cells)
    return table


def busy_table(rows: list[dict[str, Any]]) -> Table:
    """Adam's steps while other processes are busy."""
    table = Table(title="Adam, ms a step while other processes are busy")
    for column in ("workload", "implementation"):
        table.add_column(column, no_wrap=True)
    for column in ("busy processes", "median", "95th percentile", "longest"):
        table.add_column(column, justify="right")
    for row in rows:
        times = (milliseconds(row[key]) for key in ("median", "p95", "max"))
        table.add_row(row["workload"], row["implementation"], str(row["busy"]), *times)
    return table


def in_cache_table(rows: list[dict[str, Any]]) -> Table:
    """What the kernels of each instruction set take where memory doesn't set the pace."""
    has_cycles = all(row["cycles"] is not None for row in rows)
    title = "ns an element in the cache, one thread" + (" (cycles)" if has_cycles else "")
    table = Table(title=title)
    isas = list(dict.fromkeys(row["isa"] for row in rows))
    for column in ("optimizer", "dtype"):
        table.add_column(column, no_wrap=True)
    for isa in isas:
        table.add_column(isa, justify="right")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = row["optimizer"], Kept.of_row(row).name
        text = f"{row['ns']:.3f}" + (f" ({row['cycles']:.2f})" if has_cycles else "")
        cells.setdefault(key, {})[row["isa"]] = text
    for key, by_isa in cells.items():
        table.add_row(*key, *(by_isa.get(isa, "-") for isa in isas))
    return table


def sharded_table(rows: list[dict[str, Any]]) -> Table:
    """What a step of sharded parameters takes on the host, beside what it is compared with."""
    where = ", ".join(dict.fromkeys(f"{r['processes']} x {r['backend']}" for r in rows))
    table = Table(title=f"AdamW on DTensors, ms of CPU time a step, one thread of {where}")
    for column in ("workload", "step", "compared with"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "ms of that", "ratio", "p10-p90"):
        table.add_column(column, justify="right")
    for row in rows:
        for found in row["ratios"]:
            of, over = found["of"], found["over"]
            times = [milliseconds(row["medians"][name]) for name in (of, over)]
            ratios = f"[bold]{found['median']:.2f}[/bold]", f"{found['p10']:.2f}-{found['p90']:.2f}"
            table.add_row(row["workload"], of, over, *times, *ratios)
    return table


def remarks(content: Content) -> list[str]:
    """What was not measured or does not count, and why; a line each."""
    lines = []
    if content.absent:
        lines.append(f"not installed: {', '.join(content.absent)}")
    seen: dict[tuple[str, str], list[str]] = {}
    for r in content.results:
        for name, reason in (r.errors | r.wrong).items():
            seen.setdefault((name, reason), []).append(f"{r.label} on {r.workload}")
    lines += [f"{name}: {reason} ({', '.join(rows)})" for (name, reason), rows in seen.items()]
    for optimizer, rows in content.accuracy.items():
        failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
        lines += [f"{name}, accuracy of {optimizer}: {why}" for name, why in failed.items()]
    return lines


def tables(content: Content) -> list[Table]:
    """All tables of a run, in the order in which they are shown."""
    shown = []
    steps = [r for r in content.results if r.view == STEP]
    title = "ms a step (median); ratio: ours / best of torch, lower is better"
    if steps:
        shown += [step_table(steps, title), cost_table(steps)]
    for view in VIEWS[1:]:
        if trained := [r for r in content.results if r.view == view]:
            shown.append(step_table(trained, f"{view}: {title}"))
    if content.accuracy:
        shown.append(accuracy_table(content.accuracy))
    if content.busy:
        shown.append(busy_table(content.busy))
    if content.in_cache:
        shown.append(in_cache_table(content.in_cache))
    if content.memory:
        shown.append(memory_table(content.memory))
    if content.sharded:
        shown.append(sharded_table(content.sharded))
    return shown


def print_tables(console: Console, content: Content) -> None:
    for table in tables(content):
        console.print(table)
    for line in remarks(content):
        console.print(line, markup=False)
    console.print(describe(content.machine), markup=False)


def write_json(path: pathlib.Path, content: Content) -> None:
    data = {
        "machine": content.machine,
        "steps": [r.as_dict() for r in content.results],
        "sweep": [r.as_dict() for r in content.sweep],
        "accuracy": content.accuracy,
        "absent": content.absent,
        "busy": content.busy,
        "in_cache": content.in_cache,
        "memory": content.memory,
        "sharded": content.sharded,
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
