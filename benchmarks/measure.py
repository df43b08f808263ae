"""Step times: all implementations in one process, interleaved round by round."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils.benchmark import Timer

from benchmarks.peers import OPTIMIZERS, OURS, Implementation, implementations
from benchmarks.workloads import Workload

#: A block of steps is timed at once, so that the timer's own cost doesn't count.
BLOCK_SECONDS = 0.004
#: Above this size a workload's time is memory's, and it is compared with the roof.
LARGE_ELEMENTS = 10_000_000
ROOF = "mul_ over as many bytes"


@dataclass
class Result:
    """One optimizer on one workload: every sample, in seconds a step, and what follows."""

    workload: str
    optimizer: str
    tensors: int
    elements: int
    bytes_per_element: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def ratios(self, name: str) -> list[float]:
        """Ours over theirs, round by round."""
        pairs = zip(self.samples[OURS], self.samples[name], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    @property
    def best_torch(self) -> str:
        return min((n for n in self.samples if n.startswith("torch")), key=self.median)

    @property
    def ratio(self) -> float:
        """Median over the rounds of ours over the best of torch's implementations."""
        return statistics.median(self.ratios(self.best_torch))

    @property
    def bandwidth(self) -> float:
        """Bytes a second that our step moves, each byte counted once."""
        return self.elements * self.bytes_per_element / self.median(OURS)

    @property
    def roof_share(self) -> float | None:
        """Our bandwidth over that of an in-place ``mul_`` in the same rounds."""
        return None if ROOF not in self.samples else 1 / statistics.median(self.ratios(ROOF))

    def as_dict(self) -> dict[str, Any]:
        derived = {"ratio": self.ratio, "best_torch": self.best_torch, "bandwidth": self.bandwidth}
        return {**asdict(self), **derived, "roof_share": self.roof_share}


def make_groups(workload: Workload) -> list[dict[str, Any]]:
    """Parameters with random gradients, the same for every implementation."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for shapes in workload.groups:
        params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        groups.append({"params": params})
    return groups


def roof(elements: int, bytes_per_element: int) -> Callable[[], object]:
    """An in-place multiplication that moves as many bytes: 8 an element, read and written."""
    tensor = torch.ones(elements * bytes_per_element // 8)
    return lambda: tensor.mul_(1.0)


def measure(
    optimizer: str,
    workload: Workload,
    rounds: int,
    threads: int,
    after_round: Callable[[], object] = lambda: None,
) -> Result:
    """Times every implementation, one block each a round, in an order that turns."""
    result = Result(
        workload.name, optimizer, workload.tensors, workload.elements, OPTIMIZERS[optimizer][2]
    )
    steps: dict[str, Callable[[], object]] = {}
    for implementation in implementations(optimizer):
        try:
            steps[implementation.name] = prepared(implementation, workload)
        except Exception as error:  # a peer that fails is reported, the run goes on
            if implementation.name == OURS:
                raise
            result.errors[implementation.name] = repr(error)
    if workload.elements >= LARGE_ELEMENTS:
        steps[ROOF] = roof(workload.elements, result.bytes_per_element)
    timers = {
        name: Timer("step()", globals={"step": step}, num_threads=threads)
        for name, step in steps.items()
    }
    blocks = {name: block_size(timer) for name, timer in timers.items()}
    result.samples = {name: [] for name in timers}
    names = list(timers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result.samples[name].append(timers[name].timeit(blocks[name]).mean)
        after_round()
    return result


def prepared(implementation: Implementation, workload: Workload) -> Callable[[], object]:
    """The implementation's step on parameters of its own, warmed up."""
    optimizer = implementation.build(make_groups(workload))
    for _ in range(2):
        optimizer.step()
    return optimizer.step


def block_size(timer: Timer) -> int:
    return max(1, min(200, round(BLOCK_SECONDS / timer.timeit(1).mean)))
