"""Step times: all implementations in one process, interleaved round by round."""

import functools
import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils.benchmark.utils.timer import timer as synchronized_clock

from benchmarks import memory
from benchmarks.kept import FLOAT32, Kept
from benchmarks.peers import (
    OURS,
    Implementation,
    bytes_held,
    bytes_moved,
    implementations,
    wrong,
)
from benchmarks.training import (
    AVERAGING,
    COLD,
    STEP,
    empty_caches,
    extra_bytes,
    in_one_call,
    in_torchs_calls,
)
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
    bytes_per_element: float
    view: str = STEP
    kept: Kept = FLOAT32
    samples: dict[str, list[float]] = field(default_factory=dict)
    #: On a GPU: until step() has returned, in seconds; on the CPU that is the step's time.
    host: dict[str, list[float]] = field(default_factory=dict)
    #: Peak bytes that torch allocates in a step, and its kernels (GPU) or operators (CPU).
    extra_memory: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    #: Implementations whose step does not do what it should, and why: no measure for ours.
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The optimizer, and the dtype if it is not float32."""
        return self.optimizer if self.kept == FLOAT32 else f"{self.optimizer}, {self.kept.name}"

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def ratios(self, name: str) -> list[float]:
        """Ours over theirs, round by round."""
        pairs = zip(self.samples[OURS], self.samples[name], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """Median, 10th and 90th percentile of ours over theirs."""
        ratios = self.ratios(name)
        spread = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else ratios
        return statistics.median(ratios), spread[0], spread[-1]

    @property
    def best_torch(self) -> str:
        names = (n for n in self.samples if n.startswith("torch ") and n not in self.wrong)
        return min(names, key=self.median)

    @property
    def ratio(self) -> float:
        """Median over the rounds of ours over the best of torch's implementations."""
        return statistics.median(self.ratios(self.best_torch))

    @property
    def bandwidth(self) -> float:
        """Bytes a second that our step moves, each byte counted once."""
        return self.elements * self.bytes_per_element / self.median(OURS)

    @property
    def roof(self) -> float | None:
        """Bytes a second of the roof."""
        if ROOFS[self.device] not in self.samples:
            return None
        return self.elements * self.bytes_per_element / self.median(ROOFS[self.device])

    @property
    def roof_share(self) -> float | None:
        """Our bandwidth over the roof's in the same rounds."""
        roof = ROOFS[self.device]
        return None if roof not in self.samples else 1 / statistics.median(self.ratios(roof))

    def as_dict(self) -> dict[str, Any]:
        peers = {
            name: dict(zip(("median", "p10", "p90"), self.quantiles(name), strict=True))
            for name in self.samples
            if name != OURS
        }
        derived = {"ratio": self.ratio, "best_torch": self.best_torch, "bandwidth": self.bandwidth}
        row = asdict(self)
        row |= row.pop("kept")
        return {**row, **derived, "roof_share": self.roof_share, "ratios": peers}


def make_groups(workload: Workload, device: str, dtype: str = "float32") -> list[dict[str, Any]]:
    """Parameters with random gradients, the same for every implementation; rows whose gradients
    are zero are scattered, as words are."""
    generator = torch.Generator(device).manual_seed(0)
    made_of = {"device": device, "dtype": getattr(torch, dtype)}
    random = functools.partial(torch.randn, generator=generator, **made_of)
    groups = []
    for shapes in workload.groups:
        params = [random(s).requires_grad_() for s in shapes]
        for p in params:
            p.grad = random(p.shape)
            if workload.nonzero_rows < 1:
                rows = torch.rand(len(p), generator=generator, device=device)
                p.grad[rows >= workload.nonzero_rows] = 0
        groups.append({"params": params})
    return groups


def roof_step(elements: int, bytes_per_element: float, device: str) -> Callable[[], object]:
    """Moves as many bytes: 8 an element, read and written."""
    tensor = torch.ones(round(elements * bytes_per_element / 8), device=device)
    if device == "cpu":
        return lambda: tensor.mul_(1.0)
    target = torch.empty_like(tensor)
    return lambda: target.copy_(tensor)


@dataclass
class Stepper:
    """What is timed, and what has to be put back before each time."""

    step: Callable[[], object]
    restore: Callable[[], object] | None = None

    def seconds(self, number: int) -> float:
        """Mean time of so many steps in a row, until the device has done them."""
        return self._timer.timeit(number) / number

    @functools.cached_property
    def _timer(self) -> timeit.Timer:
        clock = synchronized_clock if torch.cuda.is_available() else timeit.default_timer
        return timeit.Timer(self.step, self.restore or "pass", clock)


def prepared(
    implementation: Implementation,
    workload: Workload,
    device: str,
    view: str = STEP,
    dtype: str = "float32",
) -> Stepper:
    """The implementation's step on parameters of its own, warmed up."""
    groups = make_groups(workload, device, dtype)
    optimizer = implementation.build(groups)
    for _ in range(2):
        optimizer.step()
    if view == STEP:
        return Stepper(lambda: optimizer.step())
    if view == COLD:
        return Stepper(lambda: optimizer.step(), lambda: empty_caches(device))
    params = [p for group in groups for p in group["params"]]
    if implementation.name == OURS:
        train = in_one_call(optimizer, view)
    else:
        train = in_torchs_calls(optimizer, view, params)

    def restore() -> None:
        for p in params:
            p.grad.fill_(0.01)

    restore()
    train()  # averages begin
    return Stepper(train, restore)


def prepare_all(result: Result, workload: Workload, compiled: bool) -> dict[str, Stepper]:
    """A stepper for every implementation that works and that memory has room for."""
    steppers: dict[str, Stepper] = {}
    kept, dtype = result.kept, result.kept.dtype
    average = kept.average_bytes * (result.view == AVERAGING)
    held = max(bytes_held(result.optimizer, k) for k in (kept, kept.without_options))
    needed = workload.elements * (held + average)
    # The roof's tensors, and what torch's own implementations allocate in a step.
    reserve = workload.elements * result.bytes_per_element + needed
    for implementation in implementations(result.optimizer, result.device, compiled, kept):
        name, limit = implementation.name, implementation.max_tensors
        if limit is not None and workload.tensors > limit:
            result.errors[name] = f"left out: its compilation takes minutes above {limit} tensors"
        elif name != OURS and memory.available(result.device) < needed + reserve:
            result.errors[name] = "left out: no memory for one more"
        else:
            try:
                reason = wrong(implementation, dtype, result.device)
                steppers[name] = prepared(
                    implementation, workload, result.device, result.view, dtype
                )
                if reason:
                    result.wrong[name] = reason
            except Exception as error:  # a peer that fails is reported, the run goes on
                if name == OURS:
                    raise
                result.errors[name] = repr(error)
    return steppers


def measure(
    optimizer: str,
    workload: Workload,
    rounds: int,
    threads: int,
    device: str = "cpu",
    view: str = STEP,
    kept: Kept = FLOAT32,
    compiled: bool = True,
    after_round: Callable[[], object] = lambda: None,
) -> Result:
    """Times every implementation, one block each a round, in an order that turns."""
    moved = bytes_moved(optimizer, kept, workload.sizes) + extra_bytes(view, kept)
    counts = (workload.tensors, workload.elements, moved)
    result = Result(workload.name, optimizer, device, *counts, view, kept)
    steppers = prepare_all(result, workload, compiled)
    if view == STEP:
        for name, stepper in steppers.items():
            seen = memory.profiled(stepper.step, device)
            result.extra_memory[name], result.calls[name] = seen
    if workload.elements >= LARGE_ELEMENTS:
        roof = roof_step(workload.elements, result.bytes_per_element, device)
        steppers[ROOFS[device]] = Stepper(roof)
    torch.set_num_threads(threads)
    # On a GPU each step is timed by itself: the device is idle before, and done after. And so is a
    # step that finds nothing in the caches, which the one before it would have filled.
    is_single = device == "cuda" or view == COLD
    blocks = {name: 1 if is_single else block_size(s) for name, s in steppers.items()}
    result.samples = {name: [] for name in steppers}
    names = list(steppers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result.samples[name].append(steppers[name].seconds(blocks[name]))
            if device == "cuda" and view == STEP:
                result.host.setdefault(name, []).append(host_time(steppers[name].step))
        after_round()
    return result


def host_time(step: Callable[[], object]) -> float:
    """Seconds until step() returns, while the device still works on the step before."""
    step()
    start = time.perf_counter()
    step()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed


def block_size(stepper: Stepper) -> int:
    return max(1, min(200, round(BLOCK_SECONDS / min(stepper.seconds(1) for _ in range(2)))))
