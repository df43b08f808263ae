"""What a person reads: tables in the terminal, plots as PNG, everything as JSON."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fused_optim
from benchmarks.measure import ROOFS, Result
from benchmarks.peers import OURS
from fused_optim import _C


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


def driver_version() -> str:
    """The GPU driver's version, as the kernel module says it."""
    path = pathlib.Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def describe(info: dict[str, Any]) -> str:
    gpu = f"{info['gpu']}, driver {info['driver']}, " if "gpu" in info else ""
    return (
        f"{gpu}{info['cpu']}, {info['cores']} cores, {info['threads']} threads, "
        f"{info['instruction_set']}, torch {info['torch']}, commit {info['commit']}"
    )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def step_table(results: list[Result]) -> Table:
    """Medians of every implementation and ours against the best of torch's."""
    names = [OURS, "torch fused", "torch foreach", "torch for-loop"]
    others = sorted({n for r in results for n in r.samples} - {*names})
    peers = [n for n in others if n not in ROOFS.values()]
    table = Table(title="ms a step (median); ratio: ours / best of torch, lower is better")
    for column in ("optimizer", "workload"):
        table.add_column(column)
    for column in (*names, *peers, "ratio", "p10-p90", "GB/s", "of roof"):
        table.add_column(column, justify="right")
    for r in results:
        ratios = statistics.quantiles(r.ratios(r.best_torch), n=10)
        cells = [milliseconds(r.median(n)) if n in r.samples else "-" for n in (*names, *peers)]
        share = "-" if r.roof_share is None else f"{r.roof_share:.0%}"
        table.add_row(
            r.optimizer, r.workload, *cells, f"[bold]{r.ratio:.2f}[/bold]",
            f"{ratios[0]:.2f}-{ratios[-1]:.2f}", f"{r.bandwidth / 1e9:.1f}", share,
        )  # fmt: skip
    return table


def busy_table(rows: list[dict[str, Any]]) -> Table:
    """Adam's steps while other processes are busy."""
    table = Table(title="Adam, ms a step while other processes are busy")
    for column in ("workload", "implementation"):
        table.add_column(column)
    for column in ("busy processes", "median", "95th percentile", "longest"):
        table.add_column(column, justify="right")
    for row in rows:
        times = (milliseconds(row[key]) for key in ("median", "p95", "max"))
        table.add_row(row["workload"], row["implementation"], str(row["busy"]), *times)
    return table


def print_tables(results: list[Result], busy: list[dict[str, Any]], info: dict[str, Any]) -> None:
    console = Console(width=max(140, Console().width))
    if results:
        console.print(step_table(results))
    if busy:
        console.print(busy_table(busy))
    for result in results:
        for name, error in result.errors.items():
            console.print(f"{name} failed on {result.optimizer}, {result.workload}: {error}")
    console.print(describe(info))


def write_json(
    path: pathlib.Path, results: list[Result], busy: list[dict[str, Any]], info: dict[str, Any]
) -> None:
    content = {"machine": info, "steps": [r.as_dict() for r in results], "busy": busy}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot_ratios(path: pathlib.Path, results: list[Result], info: dict[str, Any]) -> None:
    """How many times faster than each of torch's implementations, a bar each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    optimizers = list(dict.fromkeys(r.optimizer for r in results))
    figure, axes = plt.subplots(
        len(optimizers), 1, figsize=(9, 2.6 * len(optimizers) + 1), squeeze=False
    )
    names = ["torch for-loop", "torch foreach", "torch fused"]
    colors = ["#9aa5b1", "#5b8db8", "#d9822b"]
    for axis, optimizer in zip(axes[:, 0], optimizers, strict=True):
        rows = [r for r in results if r.optimizer == optimizer]
        for offset, (name, color) in enumerate(zip(names, colors, strict=True)):
            bars = [
                (i + (offset - 1) * 0.27, 1 / statistics.median(r.ratios(name)))
                for i, r in enumerate(rows)
                if name in r.samples
            ]
            if not bars:
                continue
            drawn = axis.bar(
                [x for x, _ in bars], [h for _, h in bars], width=0.25, color=color, label=name
            )
            axis.bar_label(drawn, fmt="%.3g", fontsize=7, padding=1)
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set_yscale("log")
        axis.margins(y=0.25)
        axis.set_xticks(range(len(rows)), [r.workload for r in rows])
        axis.set_ylabel("times faster")
        axis.set_title(optimizer, loc="left", fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for axis in axes[1:, 0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.suptitle("fused_optim against torch.optim, float32 (dashed: equal)")
    figure.legend(handles, labels, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0.025))
    figure.text(0.5, 0.008, describe(info), ha="center", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_bandwidth(path: pathlib.Path, results: list[Result], info: dict[str, Any]) -> None:
    """Bandwidth of the large workloads as a share of the roof."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in results if r.roof_share is not None]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.8))
    labels = [f"{r.optimizer}, {r.workload}" for r in rows]
    drawn = axis.barh(labels, [100 * (r.roof_share or 0) for r in rows], color="#d9822b")
    labels = [f"{r.bandwidth / 1e9:.0f} GB/s" for r in rows]
    axis.bar_label(drawn, labels, label_type="center", fontsize=8, color="white")
    axis.axvline(100, color="black", linewidth=0.8, linestyle="--")
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"bandwidth in % of a {ROOFS[rows[0].device]}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.text(0.5, 0.01, describe(info), ha="center", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
