"""What the kernels need for an element where memory does not set the pace: tensors in the cache.

One thread steps two tensors that both fit the second-level cache, and the difference of their
times is that of as many elements: what a call costs is in both. As nothing is waited for, it is the
fastest of many rounds that counts, and the median of three passes over everything: it is steady
where times of large tensors are not.
"""

import functools
import inspect
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.clock import Clock
from benchmarks.kept import FLOAT32, Kept
from benchmarks.measure import Stepper, make_groups
from benchmarks.peers import OURS, Implementation, bytes_held, implementations
from benchmarks.workloads import Workload
from fused_optim import _C

#: What parameter, gradient and states of the larger tensor take: half of 512 kB, the smallest
#: second-level cache that servers have had for years. The smaller one is a quarter of it.
LARGER_BYTES = 256 * 1024
SHARE = 4
#: Sizes are multiples of it, so that no vector is cut off in any dtype.
MULTIPLE = 256
STEPS, ROUNDS, ROUNDS_IN_PLACE = 15, 100, 5
#: Everything is measured as often: what disturbs the machine for seconds spoils one of three.
PASSES = 3
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def sizes(optimizer: str, kept: Kept) -> tuple[int, int]:
    """Elements of the smaller and the larger tensor, which both have states in 8 bits where these
    are asked for."""
    larger = int(LARGER_BYTES / bytes_held(optimizer, kept))
    smaller = larger // SHARE
    return smaller // MULTIPLE * MULTIPLE, larger // MULTIPLE * MULTIPLE


def supported_isas() -> Iterator[str]:
    """The instruction sets that are built in and that this machine has; the best is set again."""
    before = _C.isa()
    try:
        for isa in _C.built_isas():
            try:
                _C.set_isa(isa)
            except RuntimeError:
                continue
            yield isa
    finally:
        _C.set_isa(before)


def bare(implementation: Implementation, workload: Workload, dtype: str) -> Stepper:
    """Its step on parameters of its own, warmed up, without what torch puts around every
    optimizer's for hooks and profilers: that takes longer than the kernel, and not steadily."""
    optimizer = implementation.build(make_groups(workload, "cpu", dtype))
    for _ in range(2):
        optimizer.step()
    return Stepper(functools.partial(inspect.unwrap(type(optimizer).step), optimizer))


def steppers_of(optimizer: str, kept: Kept) -> list[Stepper]:
    """Our steps of the smaller and the larger tensor."""
    every = implementations(optimizer, "cpu", kept=kept)
    ours = next(i for i in every if i.name == OURS)
    workloads = [Workload("", [[(size,)]]) for size in sizes(optimizer, kept)]
    return [bare(ours, workload, kept.dtype) for workload in workloads]


def fastest(
    make: Callable[[], list[Stepper]],
    isas: list[str],
    rounds: int,
    each_round: Callable[[], object],
) -> list[list[float]]:
    """Seconds a step: for each instruction set those of every stepper. All take turns, so that none
    has the better part of the time, and lie elsewhere in memory from time to time: not every place
    suits the cache."""
    best = [[float("inf"), float("inf")] for _ in isas]
    places: list[list[Stepper]] = []
    before = _C.isa()
    try:
        for number in range(rounds):
            if number % ROUNDS_IN_PLACE == 0:
                places.append(make())  # and those before are kept, so that the place is another
            each_round()
            for isa, row in zip(isas, best, strict=True):
                _C.set_isa(isa)
                for i, stepper in enumerate(places[-1]):
                    stepper.step()  # into the cache
                    row[i] = min(row[i], stepper.seconds(STEPS))
    finally:
        _C.set_isa(before)
    return best


def measure_in_cache(
    optimizer: str, kept: Kept = FLOAT32, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """An optimizer's own kernels with tensors of one kind.

    Returns:
        A row for each instruction set: ``ns`` an element, and ``cycles``, None where the clock
        cannot be told.
    """
    torch.set_num_threads(1)
    smaller, larger = sizes(optimizer, kept)
    isas, clock = list(supported_isas()), Clock()
    make = functools.partial(steppers_of, optimizer, kept)
    rows = []
    for isa, times in zip(isas, fastest(make, isas, rounds, clock.look), strict=True):
        seconds = (times[1] - times[0]) / (larger - smaller)
        row = {"optimizer": optimizer, **asdict(kept), "isa": isa}
        rows.append({**row, "ns": seconds * 1e9, "cycles": clock.cycles(seconds)})
    return rows


def medians(passes: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of passes over the same, each with the median of its figures."""
    rows = []
    for same in zip(*passes, strict=True):
        figures: dict[str, float | None] = {"ns": statistics.median(row["ns"] for row in same)}
        cycles = [row["cycles"] for row in same]
        figures["cycles"] = None if None in cycles else statistics.median(cycles)
        rows.append({**same[0], **figures})
    return rows
