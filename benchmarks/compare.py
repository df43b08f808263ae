"""``python -m benchmarks compare old.json new.json``: what changed beyond noise."""

import argparse
import json
import pathlib
import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.kept import Kept
from benchmarks.peers import OURS

#: Optimizer, workload, dtype, view.
Key = tuple[str, str, str, str]
#: Smaller changes are not spoken of, however small the noise.
SMALLEST = 0.05


@dataclass
class Change:
    """Our time over a reference's, before and after, each with its spread over the rounds."""

    key: Key
    reference: str
    old: tuple[float, float, float]
    new: tuple[float, float, float]

    @property
    def factor(self) -> float:
        return self.new[0] / self.old[0]

    @property
    def is_beyond_noise(self) -> bool:
        """The middle 80% of the rounds don't overlap, and the medians differ by more than 5%."""
        (_, old_low, old_high), (_, new_low, new_high) = self.old, self.new
        apart = new_low > old_high or new_high < old_low
        return apart and abs(self.factor - 1) > SMALLEST

    @property
    def is_regression(self) -> bool:
        return self.is_beyond_noise and self.factor > 1


def spread(row: dict[str, Any], reference: str) -> tuple[float, float, float]:
    ours, theirs = row["samples"][OURS], row["samples"][reference]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    quantiles = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else ratios
    return statistics.median(ratios), quantiles[0], quantiles[-1]


def by_key(content: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """The rows of a file."""
    return {
        (r["optimizer"], r["workload"], Kept.of_row(r).name, r["view"]): r for r in content["steps"]
    }


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Of every row that both files have.

    Times of two runs don't compare on a machine whose speed wanders. So our time is taken
    relative to the best of torch's implementations in the same round, in both files the one that
    was best in the old.
    """

    before, after = by_key(old), by_key(new)
    found = []
    for key, row in before.items():
        reference = row["best_torch"]
        if key in after and reference in after[key]["samples"]:
            old_spread, new_spread = spread(row, reference), spread(after[key], reference)
            found.append(Change(key, reference, old_spread, new_spread))
    return found


def table(rows: list[Change]) -> Table:
    shown = Table(title="our time relative to torch's best, beyond noise")
    for column in ("optimizer", "workload", "dtype", "view", "relative to", "old", "new", "change"):
        shown.add_column(column)
    for change in rows:
        values = [f"{m:.3f} ({low:.3f}-{high:.3f})" for m, low, high in (change.old, change.new)]
        style = "red" if change.is_regression else "green"
        cells = (*change.key, change.reference, *values, f"{change.factor - 1:+.0%}")
        shown.add_row(*cells, style=style)
    return shown


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    options = parser.parse_args(arguments)
    console = Console()
    found = changes(*(json.loads(p.read_text()) for p in (options.old, options.new)))
    if not found:
        console.print("The files have no rows in common.")
        return 2
    beyond = [change for change in found if change.is_beyond_noise]
    if beyond:
        console.print(table(beyond))
    regressions = sum(change.is_regression for change in beyond)
    console.print(
        f"{len(found)} rows compared: {regressions} slower, {len(beyond) - regressions} faster, "
        f"{len(found) - len(beyond)} within noise"
    )
    return 1 if regressions else 0
