"""Step times: all implementations in one process, interleaved round by round."""

import functools
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
#: What memory can do: in place on the CPU, where a write would first have to fetch its line, and
#: from tensor to tensor on a GPU.
ROOFS = {"cpu": "mul_ over as many bytes", "cuda": "copy of as many bytes"}


@dataclass
class Result:
    """One optimizer on one workload: every sample, in seconds a step, and what follows."""

    workload: str
    optimizer: str
    device: str
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
        """Our bandwidth over the roof's in the same rounds."""
        roof = ROOFS[self.device]
        return None if roof not in self.samples else 1 / statistics.median(self.ratios(roof))

    def as_dict(self) -> dict[str, Any]:
        derived = {"ratio": self.ratio, "best_torch": self.best_torch, "bandwidth": self.bandwidth}
        return {**asdict(self), **derived, "roof_share": self.roof_share}


def make_groups(workload: Workload, device: str) -> list[dict[str, Any]]:
    """Parameters with random gradients, the same for every implementation."""
    generator = torch.Generator(device).manual_seed(0)
    random = functools.partial(torch.randn, generator=generator, device=device)
    groups = []
    for shapes in workload.groups:
        params = [random(s).requires_grad_() for s in shapes]
        for p in params:
            p.grad = random(p.shape)
        groups.append({"params": params})
    return groups


def roof(elements: int, bytes_per_element: int, device: str) -> Callable[[], object]:
    """Moves as many bytes: 8 an element, read and written."""
    tensor = torch.ones(elements * bytes_per_element // 8, device=device)
    if device == "cpu":
        return lambda: tensor.mul_(1.0)
    target = torch.empty_like(tensor)
    return lambda: target.copy_(tensor)


def measure(
    optimizer: str,
    workload: Workload,
    rounds: int,
    threads: int,
    device: str = "cpu",
    after_round: Callable[[], object] = lambda: None,
) -> Result:
    """Times every implementation, one block each a round, in an order that turns."""
    result = Result(
        workload.name,
        optimizer,
        device,
        workload.tensors,
        workload.elements,
        OPTIMIZERS[optimizer][2],
    )
    steps: dict[str, Callable[[], object]] = {}
    for implementation in implementations(optimizer, device):
        try:
            steps[implementation.name] = prepared(implementation, workload, device)
        except Exception as error:  # a peer that fails is reported, the run goes on
            if implementation.name == OURS:
                raise
            result.errors[implementation.name] = repr(error)
    if workload.elements >= LARGE_ELEMENTS:
        steps[ROOFS[device]] = roof(workload.elements, result.bytes_per_element, device)
    timers = {
        name: Timer("step()", globals={"step": step}, num_threads=threads)
        for name, step in steps.items()
    }
    # On a GPU each step is timed by itself: the device is idle before, and done after.
    blocks = {name: block_size(t) if device == "cpu" else 1 for name, t in timers.items()}
    result.samples = {name: [] for name in timers}
    names = list(timers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result.samples[name].append(timers[name].timeit(blocks[name]).mean)
        after_round()
    return result


def prepared(
    implementation: Implementation, workload: Workload, device: str
) -> Callable[[], object]:
    """The implementation's step on parameters of its own, warmed up."""
    optimizer = implementation.build(make_groups(workload, device))
    for _ in range(2):
        optimizer.step()
    return optimizer.step


def block_size(timer: Timer) -> int:
    return max(1, min(200, round(BLOCK_SECONDS / timer.timeit(1).mean)))
