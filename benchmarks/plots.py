"""Plots that a person reads at a glance, as PNG files."""

import pathlib
import statistics
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.measure import ROOFS, Result
from benchmarks.peers import OURS
from benchmarks.report import Content, describe
from benchmarks.training import COLD, STEP, SURROUNDED

#: One colour for each implementation in every plot.
COLORS = {
    OURS: "#c8102e",
    "torch for-loop": "#9aa5b1",
    "torch foreach": "#5b8db8",
    "torch fused": "#d9822b",
    "torch.compile": "#7a5195",
    "DeepSpeed CPUAdam": "#2f9e74",
    "DeepSpeed FusedAdam": "#2f9e74",
    "Apex": "#76b900",
    "Transformer Engine": "#486b00",
    "bitsandbytes": "#b5a300",
    "bitsandbytes 8-bit": "#6b6200",
    "torchao 8-bit": "#e377c2",
    "optimi": "#17a2b8",
}


def _finish(figure: Any, path: pathlib.Path, content: Content) -> bool:
    figure.text(
        0.5, 0.006, describe(content.machine), ha="center", fontsize=7, color="#555555", wrap=True
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def plot_ratios(path: pathlib.Path, content: Content) -> bool:
    """How many times faster a step is than each other implementation's, a bar each."""
    return _plot_ratios(path, content, [STEP])


def plot_training(path: pathlib.Path, content: Content) -> bool:
    """The same of a step with what surrounds it in training."""
    return _plot_ratios(path, content, SURROUNDED)


def plot_cold(path: pathlib.Path, content: Content) -> bool:
    """The same of a step that finds nothing in the caches."""
    return _plot_ratios(path, content, [COLD])


def _plot_ratios(path: pathlib.Path, content: Content, views: list[str]) -> bool:
    results = [r for r in content.results if r.view in views]
    if not results:
        return False
    panels = list(dict.fromkeys((r.label, r.view) for r in results))
    workloads = list(dict.fromkeys(r.workload for r in results))
    names = [n for n in COLORS if n != OURS and any(n in r.samples for r in results)]
    width = max(9.0, 0.16 * len(workloads) * (len(names) + 1) + 1.5)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(width, 2.7 * len(panels) + 1.2), squeeze=False
    )
    for axis, (label, view) in zip(axes[:, 0], panels, strict=True):
        rows = [r for r in results if (r.label, r.view) == (label, view)]
        _draw_ratios(axis, rows, workloads, names)
        title = label if view == STEP else f"{label}: {view}"
        axis.set_title(title, loc="left", fontweight="bold")
    handles = {}
    for axis in axes[:, 0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    handles = {name: handles[name] for name in names if name in handles}
    figure.suptitle(
        "times faster than others: fused_optim, float32 where no other is named (dashed: equal)"
    )
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(5, len(handles)),
        bbox_to_anchor=(0.5, 0.02), fontsize=8,
    )  # fmt: skip
    bottom = (0.45 + 0.25 * -(-len(handles) // 5)) / figure.get_figheight()
    figure.tight_layout(rect=(0, bottom, 1, 1))
    return _finish(figure, path, content)


def _draw_ratios(axis: Any, rows: list[Result], workloads: list[str], names: list[str]) -> None:
    """One optimizer's bars: each workload's stand together, without gaps where a peer lacks."""
    bar = 0.85 / max(1, len(names))
    for row in rows:
        present = [n for n in names if n in row.samples and n not in row.wrong]
        center = workloads.index(row.workload)
        for i, name in enumerate(present):
            height = 1 / statistics.median(row.ratios(name))
            x = center + (i - (len(present) - 1) / 2) * bar
            axis.bar(x, height - 1, bottom=1, width=bar * 0.92, color=COLORS[name], label=name)
            text = f"{height:.3g}" if height < 100 else f"{height:.0f}"
            axis.annotate(  # above the line, where a slower one would write over the names
                text, (x, max(1, height)), (0, 2), textcoords="offset points", ha="center",
                va="bottom", fontsize=6, rotation=90, color="black" if height >= 1 else "red",
            )  # fmt: skip
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.7) * 0.8, high * 3)
    axis.set_xticks(range(len(workloads)), workloads, fontsize=8)
    axis.set_xlim(-0.6, len(workloads) - 0.4)
    axis.set_ylabel("times faster")
    axis.spines[["top", "right"]].set_visible(False)


def plot_bandwidth(path: pathlib.Path, content: Content) -> bool:
    """Bandwidth of the large workloads as a share of the roof."""
    rows = [r for r in content.results if r.roof_share is not None and r.view == STEP]
    if not rows:
        return False
    figure, axis = plt.subplots(figsize=(9, 0.36 * len(rows) + 1.8))
    labels = [f"{r.label}, {r.workload}" for r in rows]
    drawn = axis.barh(labels, [100 * (r.roof_share or 0) for r in rows], color=COLORS[OURS])
    axis.bar_label(
        drawn, [f"{r.bandwidth / 1e9:.0f} GB/s" for r in rows], label_type="center", fontsize=8,
        color="white",
    )  # fmt: skip
    axis.axvline(100, color="black", linewidth=0.8, linestyle="--")
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_title("bandwidth of the step where memory sets the pace", loc="left", fontsize=10)
    axis.set_xlabel(f"% of the bandwidth of a {ROOFS[rows[0].device]}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return _finish(figure, path, content)


def plot_scaling(path: pathlib.Path, content: Content) -> bool:
    """Time over the number of tensors, and over the size of one, above the memory's floor."""
    if not content.sweep:
        return False
    roof = max((r.roof for r in content.sweep if r.roof is not None), default=None)
    counts = [r for r in content.sweep if not r.workload.startswith("2^")]
    sizes = [r for r in content.sweep if r.workload.startswith("2^")]
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True)
    for axis, rows, label in (
        (axes[0], counts, "tensors of 1,000 elements"),
        (axes[1], sizes, "elements of one tensor"),
    ):
        xs = {id(r): r.tensors if rows is counts else r.elements for r in rows}
        for name, color in COLORS.items():
            points = [(xs[id(r)], 1e3 * r.median(name)) for r in rows if name in r.samples]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.4, color=color, label=name)
        if roof is not None:
            floor = [(xs[id(r)], 1e3 * r.elements * r.bytes_per_element / roof) for r in rows]
            label_ = f"memory, {roof / 1e9:.0f} GB/s"
            axis.plot(*zip(*floor, strict=True), "k--", lw=0.9, label=label_)
        axis.set_xscale("log", base=2 if rows is sizes else 10)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ms a step")
    lowest = min(r.median(OURS) for r in content.sweep)
    axes[0].set_ylim(bottom=1e3 * lowest / 3)
    axes[1].legend(fontsize=7)
    figure.suptitle(f"{content.sweep[0].optimizer}: one step, float32")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return _finish(figure, path, content)
