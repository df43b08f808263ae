"""What a run shows while it measures: a line for each result, and on a terminal a bar."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from benchmarks.measure import Result
from benchmarks.peers import OURS
from benchmarks.training import STEP


def line(result: Result) -> str:
    """One result in short: ours beside the best of torch's."""
    view = "" if result.view == STEP else f", {result.view}"
    ours, best = result.median(OURS), result.best_torch
    return (
        f"{result.label}, {result.workload}{view}: {ours * 1e3:.3g} ms, "
        f"{best} {result.median(best) * 1e3:.3g} ms, ratio {result.ratio:.2f}"
    )


class Progress:
    """Tells how far a run is. Where no terminal is, as in a log, the lines are all there is.

    Args:
        console: where to, beside the tables.
        results: how many there will be.
        rounds: how many each takes.
    """

    def __init__(self, console: Console, results: int, rounds: int) -> None:
        self.console = console
        self.results, self.done = results, 0
        self.start = time.monotonic()
        columns = (
            TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(),
        )  # fmt: skip
        self.bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=results * rounds)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, what: str) -> None:
        self.bar.update(self.task, description=what)

    def after_round(self) -> None:
        self.bar.advance(self.task)

    def end(self, result: Result) -> None:
        self.done += 1
        place = f"[{self.done}/{self.results}, {time.monotonic() - self.start:.0f} s]"
        # A line is a line, however narrow the terminal that isn't there.
        self.console.print(f"{place} {line(result)}", markup=False, highlight=False, soft_wrap=True)
