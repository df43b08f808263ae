"""``python -m benchmarks``: step times of fused_optim and of every peer that is installed.

``python -m benchmarks shapes script.py:factory`` writes a workload from a model of your own,
``python -m benchmarks compare old.json new.json`` says what changed beyond noise.
"""

import argparse
import itertools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of each start and stop


import torch
from rich.console import Console

from benchmarks import compare, footprint, in_cache, memory, page, peers, plots, report, shapes
from benchmarks.accuracy import measure_accuracy
from benchmarks.busy import measure_busy
from benchmarks.formats_asked import add_formats, check_formats, formats
from benchmarks.kept import DTYPES, FLOAT32, Kept
from benchmarks.measure import Result, measure
from benchmarks.peers import OPTIMIZERS, bytes_held
from benchmarks.progress import Progress
from benchmarks.training import AVERAGING, COLD, STEP, TRAINING
from benchmarks.workloads import QUICK, Workload, count_sweep, load, size_sweep, standard

#: The workloads of the views with what surrounds a step, and the optimizers of the longer one.
TRAINED = ["1000x1000", "resnet50", "lora_360m", "lora_7b", "gpt2"]
#: What a quick run measures of them: one optimizer on one workload.
TRAINED_QUICKLY = ("AdamW", "lora_360m")
AVERAGED = ["Adam", "AdamW"]
#: What is measured with nothing in the caches: many tensors, whose times depend on them most.
COLD_WORKLOADS, COLD_OPTIMIZERS = ["1000x1000", "1000x1"], ["AdamW", "SGD+momentum"]
#: The optimizers that are measured on every workload, and the workloads of the others, unless the
#: command line says which.
EVERYWHERE = ["SGD+momentum", "Adam", "AdamW", "RMSprop"]
ELSEWHERE = ["1000x1000", "resnet50", "25M"]
#: What a whole run measures in half types, too.
HALVES = ["bfloat16", "float16"]
IN_HALVES = ["SGD+momentum", "Adam", "AdamW"]
#: The sweeps are measured with one optimizer.
SWEPT = "Adam"


def add_views(parser: argparse.ArgumentParser) -> None:
    """What a command can measure instead of all that is usual."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--busy", action="store_true", help="only: steps while other processes use the cores"
    )
    only.add_argument(
        "--cold", action="store_true", help="only: steps that find nothing in the caches"
    )
    only.add_argument(
        "--in-cache", action="store_true",
        help="only: ns an element of our kernels for each instruction set, one thread",
    )  # fmt: skip
    only.add_argument(
        "--memory", action="store_true",
        help="only: bytes an element that a step, state_dict() and load_state_dict() take at their "
        "peak, for every format",
    )  # fmt: skip
    only.add_argument(
        "--sharded", action="store_true",
        help="only: AdamW's steps of DTensors, as fully_shard has them, on one thread of two "
        "processes (on a GPU of one)",
    )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(standard("cuda"))
    parser.add_argument(
        "--workload", action="append", help=f"a JSON file with shapes, or one of: {known}"
    )
    parser.add_argument("--optimizer", action="append", choices=list(OPTIMIZERS))
    add_formats(parser)
    parser.add_argument("--rounds", type=int, help="rounds a workload (default: 25, quick: 6)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="under 2 minutes: a part of it all")
    add_views(parser)
    parser.add_argument("--report", type=pathlib.Path, metavar="HTML", help="one page of it all")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"), metavar="FOLDER"
    )
    options = parser.parse_args()
    for name in options.workload or []:
        if name not in standard(options.device) and not pathlib.Path(name).is_file():
            parser.error(f"{name} is no JSON file, and none of {', '.join(standard('cuda'))}")
    if options.in_cache and options.device != "cpu":
        parser.error("--in-cache is about the kernels of the CPU")
    check_formats(parser, options)
    return options


class Row(NamedTuple):
    """What one result is of."""

    optimizer: str
    workload: Workload
    view: str = STEP
    kept: Kept = FLOAT32


class Plan:
    """What is measured, and how many rounds each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.known = known = standard(options.device)
        usual = COLD_WORKLOADS if options.cold else QUICK if options.quick else list(known)
        names = options.workload or usual
        self.workloads = [known[n] if n in known else load(pathlib.Path(n)) for n in names]
        self.optimizers = options.optimizer or list(OPTIMIZERS)
        self.formats = formats(options, ["float32"])
        self.rounds = options.rounds or (6 if options.quick else 25)
        self.is_asked = bool(options.workload or options.optimizer)
        is_part = options.quick or options.cold or options.dtype or self.formats != [FLOAT32]
        is_whole = not (self.is_asked or is_part)
        self.rows = [row for kept in self.formats for row in self.rows_in(kept)]
        self.rows = [row for row in self.rows if not peers.refusal(row.optimizer, row.kept)]
        if is_whole:
            elsewhere = [known[n] for n in ELSEWHERE]
            halves = [Kept(dtype) for dtype in HALVES]
            self.rows += [Row(o, w, kept=k) for k in halves for w in elsewhere for o in IN_HALVES]
        self.sweep = [*count_sweep(), *size_sweep()] if is_whole else []

    def rows_in(self, kept: Kept) -> list[Row]:
        """The steps of every workload, and of some with what surrounds them or out of memory."""
        if self.options.cold:
            names = self.options.optimizer or COLD_OPTIMIZERS
            return [Row(o, w, COLD, kept) for w in self.workloads for o in names]
        elsewhere = [self.known[n] for n in ELSEWHERE if not self.options.quick]
        chosen = [o for o in self.optimizers if self.is_asked or o in EVERYWHERE]
        rows = [
            Row(o, w, STEP, kept)
            for w in self.workloads
            for o in self.optimizers
            if o in chosen or w in elsewhere
        ]
        optimizer, name = TRAINED_QUICKLY
        if self.options.quick and not self.is_asked:
            rows.append(Row(optimizer, self.known[name], TRAINING, kept))
        if not self.options.quick:
            trained = [self.known[n] for n in TRAINED if self.known[n] in self.workloads]
            averaged = [o for o in chosen if o in AVERAGED]
            rows += [Row(o, w, TRAINING, kept) for w in trained for o in chosen]
            rows += [Row(o, w, AVERAGING, kept) for w in trained for o in averaged]
            cold = [self.known[n] for n in COLD_WORKLOADS if self.known[n] in self.workloads]
            rows += [Row(o, w, COLD, kept) for w in cold for o in chosen if o in COLD_OPTIMIZERS]
        return rows

    def run(self, progress: Progress, content: report.Content) -> None:
        """Adds the results and those of the sweeps, each as soon as there is one."""

        def one(row: Row) -> Result:
            progress.begin(f"{row.optimizer}, {row.workload.name}")
            result = measure(
                row.optimizer, row.workload, self.rounds, self.options.threads,
                self.options.device, row.view, row.kept, compiled=not self.options.quick,
                after_round=progress.after_round,
            )  # fmt: skip
            progress.end(result)
            if self.options.device == "cuda":
                torch.cuda.empty_cache()
            return result

        def order(r: Result) -> tuple[str, int, int]:
            return r.view, DTYPES.index(r.kept.dtype), self.optimizers.index(r.optimizer)

        for row in self.rows:
            content.results.append(one(row))
            content.results.sort(key=order)
        content.sweep += (one(Row(SWEPT, w)) for w in self.sweep if self.fits(w))

    def fits(self, workload: Workload) -> bool:
        """Whether memory holds two implementations and the roof."""
        needed = 3 * workload.elements * bytes_held(SWEPT, FLOAT32)
        return memory.available(self.options.device) > needed


def run_steps(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    content.absent = peers.absent(options.device)
    plan = Plan(options)
    with Progress(console, len(plan.rows) + len(plan.sweep), plan.rounds) as progress:
        plan.run(progress, content)


def run_accuracy(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    quick = EVERYWHERE if options.quick and not options.workload else list(OPTIMIZERS)
    kept = Kept("float32", options.state_dtype, None, options.stochastic_rounding)
    for optimizer in options.optimizer or quick:
        if peers.refusal(optimizer, kept):
            continue
        console.print(f"accuracy of {optimizer} after 100 steps")
        rows = measure_accuracy(optimizer, options.device, not options.quick, kept)
        content.accuracy[optimizer] = rows


def run_busy(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    for name in ("100x64", "1000x1000"):
        console.print(f"500 steps of {name} beside 0, 1 and 2 busy processes")
        content.busy += measure_busy(standard("cpu")[name], steps=500, threads=options.threads)


def run_in_cache(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    every = itertools.product(options.optimizer or OPTIMIZERS, formats(options, in_cache.DTYPES))
    asked = [(optimizer, kept) for optimizer, kept in every if not peers.refusal(optimizer, kept)]
    rounds = options.rounds or in_cache.ROUNDS
    passes: list[list[dict[str, Any]]] = []
    for number in range(1, in_cache.PASSES + 1):
        console.print(f"in the cache, pass {number} of {in_cache.PASSES}")
        passes.append([])
        for optimizer, kept in asked:
            passes[-1] += in_cache.measure_in_cache(optimizer, kept, rounds)
        content.in_cache = in_cache.medians(passes)


def run_memory(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    for optimizer in options.optimizer or footprint.OPTIMIZERS:
        console.print(f"memory of {optimizer}")
        content.memory += footprint.measure_footprint(optimizer, options.device)


def run_sharded(options: argparse.Namespace, content: report.Content, console: Console) -> None:
    # Not above: with DTensors in the process, plain parameters' steps do a little more.
    from benchmarks import sharded

    known = standard(options.device)
    named = [known[n] if n in known else load(pathlib.Path(n)) for n in options.workload or []]
    for workload in named or sharded.WORKLOADS:
        console.print(f"{workload.name}, sharded")
        rounds = options.rounds or sharded.ROUNDS
        content.sharded.append(sharded.measure_sharded(workload, options.device, rounds))


def write(options: argparse.Namespace, content: report.Content) -> None:
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    views = ("busy", "in_cache", "memory", "sharded")
    name = next((view for view in views if getattr(options, view)), "steps")
    report.write_json(folder / f"{name}.json", content)
    drawn: list[tuple[str, Callable[..., bool]]] = [
        ("ratios.png", plots.plot_ratios),
        ("training.png", plots.plot_training),
        ("cold.png", plots.plot_cold),
        ("bandwidth.png", plots.plot_bandwidth),
        ("scaling.png", plots.plot_scaling),
    ]
    images = [folder / name for name, plot in drawn if plot(folder / name, content)]
    if options.report:
        options.report.write_text(page.render(content, images))


def runs(options: argparse.Namespace) -> list[Callable[..., None]]:
    """What a command measures, in turn."""
    only = {
        "busy": run_busy, "in_cache": run_in_cache, "memory": run_memory, "sharded": run_sharded,
        "cold": run_steps,
    }  # fmt: skip
    asked = [run for view, run in only.items() if getattr(options, view)]
    return asked or [run_steps, run_accuracy]


def main() -> None:
    commands = {"compare": compare.main, "shapes": shapes.main}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        sys.exit(commands[sys.argv[1]](sys.argv[2:]))
    options = parse_arguments()
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    threads = 1 if options.in_cache or options.sharded else options.threads
    content = report.Content(report.machine(threads, options.device))
    interrupted = False
    try:
        for run in runs(options):
            run(options, content, console)
    except KeyboardInterrupt:
        console.print("interrupted: what there is until now")
        interrupted = True
    report.print_tables(Console(width=max(170, Console().width)), content)
    write(options, content)
    console.print(f"JSON and plots are in {options.output}/")
    sys.exit(130 if interrupted else 0)
