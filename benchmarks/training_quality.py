"""``python -m benchmarks.training_quality``: does training with fewer bytes end where float32 does?

Small models are trained from several seeds, with each optimizer in each format and with 8-bit
optimizers of others where they are installed. All begin with the same weights, see the same batches
and compute in float32: rows differ by what the optimizer keeps, and those with bfloat16 parameters
by their gradients, which are bfloat16 as well.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

import fused_optim
from benchmarks.kept import FLOAT32, FORMATS, Kept
from benchmarks.peers import OPTIMIZERS, PEERS, Implementation, implementations
from benchmarks.small_models import TASKS, Task, loss_of

#: A difference to float32 that doesn't count: both a share of the loss, and less than what another
#: seed makes.
NEGLIGIBLE = 0.003
OF_OTHERS = ["bitsandbytes 8-bit", "torchao 8-bit"]
#: float32 again, from weights that differ by about their last bit: what chance makes.
CHANCE, BY = "float32, other by chance", 1e-7


@dataclass(frozen=True)
class Trained:
    """What one row is of: an optimizer in a format, or another library's."""

    name: str
    kept: Kept
    build: Callable[[list[nn.Parameter], int], Any]


def _ours(optimizer: str, kept: Kept) -> Trained:
    name, options, _ = OPTIMIZERS[optimizer]

    def build(params: list[nn.Parameter], seed: int) -> Any:
        cls = getattr(fused_optim, name)
        return cls(params, **options, **kept.options, rounding_seed=seed)

    return Trained(kept.name, kept, build)


def _by_chance(optimizer: str) -> Trained:
    exact = _ours(optimizer, FLOAT32)

    def build(params: list[nn.Parameter], seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in params:
                p.mul_(1 + BY * torch.randn(p.shape, generator=generator))
        return exact.build(params, seed)

    return Trained(CHANCE, FLOAT32, build)


def _others(implementation: Implementation) -> Trained:
    def build(params: list[nn.Parameter], seed: int) -> Any:
        return implementation.build([{"params": params}])

    return Trained(implementation.name, FLOAT32, build)


def rows_of(optimizer: str) -> Iterator[Trained]:
    """float32 first, which all others are compared with."""
    yield _ours(optimizer, FLOAT32)
    yield _by_chance(optimizer)
    yield from (_ours(optimizer, kept) for kept in FORMATS if kept != FLOAT32)
    yield from (_others(i) for i in implementations(optimizer, "cpu") if i.name in OF_OTHERS)


def set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rate_at(step: int, steps: int, largest: float) -> float:
    """Up in a tenth of the steps, and down to nothing: updates become small, as in practice."""
    begin = max(1, steps // 10)
    return largest * min((step + 1) / begin, (steps - step) / (steps - begin))


def outputs_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What the model computes in float32 with its parameters."""
    return functional_call(model, {n: p.float() for n, p in model.named_parameters()}, inputs)


def train(task: Task, optimizer: str, trained: Trained, seed: int, steps: int) -> float:
    """The loss in the end."""
    torch.manual_seed(seed)
    # Rounded for all, so that all begin with the same weights.
    model = task.make_model().bfloat16().to(getattr(torch, trained.kept.dtype))
    built = trained.build(list(model.parameters()), seed)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        inputs, targets = task.batch(generator)
        loss_of(outputs_of(model, inputs), targets).backward()
        set_rate(built, rate_at(step, steps, task.rates[optimizer]))
        built.step()
        built.zero_grad()
    if getattr(built, "fallback_reason", None) is not None:
        raise RuntimeError(f"this was no step of the kernels: {built.fallback_reason}")
    with torch.no_grad():
        inputs, targets = task.judged()
        return loss_of(outputs_of(model, inputs), targets).item()


def compared(losses: list[float], float32: list[float]) -> dict[str, Any]:
    """Means over the seeds, and whether the difference counts."""
    deviation = statistics.stdev(float32)
    differences = [a - b for a, b in zip(losses, float32, strict=True)]
    mean = statistics.fmean(float32)
    difference = statistics.fmean(differences)
    is_small = abs(difference) <= min(NEGLIGIBLE * mean, deviation)
    return {
        "loss": statistics.fmean(losses),
        "deviation": statistics.stdev(losses),
        "difference": difference / mean,
        # Of the mean of the differences: more seeds make it smaller.
        "error": statistics.stdev(differences) / math.sqrt(len(losses)) / mean,
        "negligible": is_small,
    }


def measure_quality(
    task: Task, optimizer: str, seeds: int, steps: int | None = None
) -> list[dict[str, Any]]:
    """A row for each format, and for each other library's 8-bit optimizer."""
    rows: list[dict[str, Any]] = []
    float32: list[float] = []
    for trained in rows_of(optimizer):
        count = task.steps if steps is None else steps
        losses = [train(task, optimizer, trained, seed, count) for seed in range(seeds)]
        float32 = float32 or losses
        named = {"task": task.name, "optimizer": optimizer, "trained": trained.name}
        rows.append({**named, "losses": losses, **compared(losses, float32)})
    return rows


def cell(row: dict[str, Any]) -> str:
    """float32's loss and its deviation between seeds; of others the difference to that, and what
    chance makes of it. Bold is what isn't negligible."""
    if row["trained"] == FLOAT32.name:
        return f"{row['loss']:.4f} ± {row['deviation']:.4f}"
    text = f"{100 * row['difference']:+.2f} ± {100 * row['error']:.2f} %"
    return text if row["negligible"] else f"**{text}**"


def table(task: str, rows: list[dict[str, Any]]) -> str:
    """A task's, as Markdown: a column for each optimizer."""
    cells = {(row["trained"], row["optimizer"]): cell(row) for row in rows if row["task"] == task}
    trained, optimizers = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    lines = [f"| {task} | {' | '.join(optimizers)} |", "|---" * (len(optimizers) + 1) + "|"]
    for name in trained:
        lines.append(f"| {name} | {' | '.join(cells.get((name, o), '') for o in optimizers)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = [task.name for task in TASKS]
    parser.add_argument("--task", action="append", choices=tasks)
    parser.add_argument("--optimizer", action="append", choices=list(TASKS[0].rates))
    parser.add_argument("--seeds", type=int, default=5, help="at least 2 (default: 5)")
    parser.add_argument("--steps", type=int, help="of each training (default: the task's)")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"), metavar="FOLDER"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds: a deviation takes at least 2")
    return options


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    # Threads that wait for each other would take most of the time of such small models.
    torch.set_num_threads(1)
    # Others compile their steps for each shape, minutes that change no number.
    torch.compiler.set_stance("force_eager")
    warnings.filterwarnings("ignore", message=".*stands still")
    absent = [name for name in OF_OTHERS if not PEERS[name].is_installed]
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        for optimizer in options.optimizer or task.rates:
            if task.name in (options.task or [task.name]):
                print(f"{task.name}, {optimizer}", file=sys.stderr)
                rows += measure_quality(task, optimizer, options.seeds, options.steps)
    for name in dict.fromkeys(row["task"] for row in rows):
        print(table(name, rows), end="\n\n")
    if absent:
        print(f"not installed: {', '.join(absent)}")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {options.seeds} seeds")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "training_quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
