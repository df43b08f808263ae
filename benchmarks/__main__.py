"""``python -m benchmarks``: step times of fused_optim and of every peer that is installed."""

import argparse
import functools
import pathlib
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.busy import measure_busy
from benchmarks.measure import Result, measure
from benchmarks.peers import OPTIMIZERS
from benchmarks.workloads import load, standard

#: What `--quick` leaves out: the models that take gigabytes.
LONG = {"gpt2", "1G"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join(standard("cuda"))
    parser.add_argument(
        "--workload", action="append", help=f"a JSON file with shapes, or one of: {known}"
    )
    parser.add_argument("--optimizer", action="append", choices=list(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, help="rounds a workload (default: 30, quick: 8)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="under 2 minutes: fewer rounds")
    parser.add_argument(
        "--busy", action="store_true", help="only: steps while other processes use the cores"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"), metavar="FOLDER"
    )
    return parser.parse_args()


def run_steps(options: argparse.Namespace, console: Console) -> list[Result]:
    workloads = standard(options.device)
    names = options.workload or [n for n in workloads if not (options.quick and n in LONG)]
    chosen = [workloads[n] if n in workloads else load(pathlib.Path(n)) for n in names]
    optimizers = options.optimizer or list(OPTIMIZERS)
    rounds = options.rounds or (8 if options.quick else 30)
    results = []
    columns = (
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        total = len(chosen) * len(optimizers) * rounds
        task = progress.add_task("", total=total)
        for workload in chosen:
            for optimizer in optimizers:
                progress.update(task, description=f"{optimizer}, {workload.name}")
                advance = functools.partial(progress.advance, task)
                results.append(
                    measure(optimizer, workload, rounds, options.threads, options.device, advance)
                )
    order = {name: i for i, name in enumerate(optimizers)}
    return sorted(results, key=lambda r: order[r.optimizer])


def main() -> None:
    options = parse_arguments()
    console = Console(stderr=True)
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    busy: list[dict[str, Any]] = []
    if options.busy:
        for name in ("100x64", "1000x1000"):
            console.print(f"500 steps of {name} beside 0, 1 and 2 busy processes")
            busy += measure_busy(standard("cpu")[name], steps=500, threads=options.threads)
    else:
        results = run_steps(options, console)
    info = report.machine(options.threads, options.device)
    report.print_tables(results, busy, info)
    options.output.mkdir(parents=True, exist_ok=True)
    report.write_json(
        options.output / ("busy.json" if options.busy else "steps.json"), results, busy, info
    )
    if results:
        report.plot_ratios(options.output / "ratios.png", results, info)
        report.plot_bandwidth(options.output / "bandwidth.png", results, info)
    console.print(f"JSON and plots are in {options.output}/")


if __name__ == "__main__":
    main()
