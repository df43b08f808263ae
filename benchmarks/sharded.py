"""``--sharded``: AdamW's step of parameters that lie on several processes, as fully_shard has them.

DTensors, sharded in their first dimension: two processes with gloo on a CPU, one with NCCL on a
GPU. Besides memory such a step takes work on the host, tensor by tensor, and so it is the CPU time
of the thread that steps, which doesn't pass while it waits for the other process.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import fused_optim
from benchmarks.peers import OURS
from benchmarks.workloads import Workload

#: A processor's caches hold the shards of the smaller one, and not those of the larger one.
WORKLOADS = [Workload(f"{count} x 64 x 32", [[(64, 32)] * count]) for count in (150, 1000)]
PROCESSES = {"cpu": 2, "cuda": 1}
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
ROUNDS, STEPS = 25, 3
MAX_NORM = 1.0

PLAIN = f"{OURS}, plain shards"
CLIPS = f"{OURS}, max_grad_norm"
FIRST = f"{OURS}, first step"
RESTORED = f"{OURS}, after set_optimizer_state_dict"
FOREACH, FUSED = "torch foreach", "torch fused"
TORCH_CLIPS = "torch clip_grad_norm_ + fused"
TORCH_FIRST = "torch fused, first step"
#: What is compared with what.
RATIOS = [
    (OURS, FOREACH), (OURS, FUSED), (OURS, PLAIN), (CLIPS, TORCH_CLIPS), (FIRST, TORCH_FIRST),
    (RESTORED, OURS),
]  # fmt: skip


class Model(nn.Module):
    """One rank's part of a workload: sharded parameters, and each with a gradient of its own
    placement, as FSDP2 gives them."""

    def __init__(self, workload: Workload, mesh: dist.DeviceMesh) -> None:
        super().__init__()
        generator = torch.Generator(mesh.device_type).manual_seed(0)
        for number, shape in enumerate(s for group in workload.groups for s in group):
            whole = torch.randn(shape, generator=generator, device=mesh.device_type)
            # All have the same values, so none has to be sent.
            sharded = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
            param = nn.Parameter(sharded)
            local = torch.randn(
                param._local_tensor.shape, generator=generator, device=mesh.device_type
            )
            param.grad = DTensor(local, param._spec, requires_grad=False)
            self.register_parameter(f"p{number}", param)

    def plain_shards(self) -> list[Tensor]:
        """Copies of this rank's parts, as plain parameters."""
        params = []
        for sharded in self.parameters():
            param = nn.Parameter(sharded._local_tensor.detach().clone())
            param.grad = sharded.grad._local_tensor.clone()
            params.append(param)
        return params


@dataclass
class Timed:
    """A step, and what comes before it each time without being timed."""

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    steps: int = STEPS

    def seconds(self) -> float:
        """CPU time of this thread in a step, the mean of some in a row."""
        spent = 0.0
        for _ in range(self.steps):
            self.prepare()
            start = time.thread_time()
            self.step()
            spent += time.thread_time() - start
        return spent / self.steps


def warmed_up(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for _ in range(2):
        optimizer.step()
    if isinstance(optimizer, fused_optim.AdamW) and optimizer.fallback_reason is not None:
        raise RuntimeError(f"this is no step of the kernels: {optimizer.fallback_reason}")
    return optimizer


def restored(model: Model) -> torch.optim.Optimizer:
    """One that continues another one's training from its state dict."""
    trained = warmed_up(fused_optim.AdamW(model.parameters()))
    state = get_optimizer_state_dict(model, trained)
    optimizer = fused_optim.AdamW(model.parameters())
    set_optimizer_state_dict(model, optimizer, state)
    return warmed_up(optimizer)


def first_steps(make: Callable[[], torch.optim.Optimizer]) -> Timed:
    """The optimizer is new each time, and makes its states."""
    latest: list[torch.optim.Optimizer] = []

    def prepare() -> None:
        latest[:] = [make()]

    return Timed(lambda: latest[0].step(), prepare, steps=1)


def seconds_of_one(step: Callable[[], object]) -> float:
    return Timed(step, steps=1).seconds()


def all_timed(
    workload: Workload, mesh: dist.DeviceMesh
) -> tuple[dict[str, Timed], dict[str, float]]:
    """Each on parameters of its own; and what the very first step took in this process, in which
    torch works out for each operation how its result is placed."""

    def model() -> Model:
        return Model(workload, mesh)

    ours, theirs = fused_optim.AdamW, torch.optim.AdamW
    steps = {
        OURS: ours(model().parameters()),
        FOREACH: theirs(model().parameters(), foreach=True),
        FUSED: theirs(model().parameters(), fused=True),
        PLAIN: ours(model().plain_shards()),
        CLIPS: ours(model().parameters(), max_grad_norm=MAX_NORM),
    }
    once = {name: seconds_of_one(optimizer.step) for name, optimizer in steps.items()}
    timed = {name: Timed(warmed_up(optimizer).step) for name, optimizer in steps.items()}
    clipped = list(model().parameters())
    after_clipping = warmed_up(theirs(clipped, fused=True))

    def clip_and_step() -> None:
        nn.utils.clip_grad_norm_(clipped, MAX_NORM)
        after_clipping.step()

    once[TORCH_CLIPS] = seconds_of_one(clip_and_step)
    timed[TORCH_CLIPS] = Timed(clip_and_step)
    for name, make in ((FIRST, ours), (TORCH_FIRST, lambda params: theirs(params, fused=True))):
        params = list(model().parameters())
        timed[name] = first_steps(lambda make=make, params=params: make(params))
    timed[RESTORED] = Timed(restored(model()).step)
    return timed, once


def measure_rank(workload: Workload, mesh: dist.DeviceMesh, rounds: int) -> dict[str, Any]:
    """Seconds a step, round by round, in an order that turns and is the same on all ranks."""
    timed, once = all_timed(workload, mesh)
    names = list(timed)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if mesh.device_type == "cuda":
                torch.cuda.synchronize()  # or the driver's queue is full, and the host waits for it
            samples[name].append(timed[name].seconds())
    return {"samples": samples, "once": once}


def _run_rank(rank: int, folder: str, device: str, workload: Workload, rounds: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(
        BACKENDS[device],
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES[device],
    )
    try:
        mesh = dist.init_device_mesh(device, (PROCESSES[device],))
        found = measure_rank(workload, mesh, rounds)
        pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(found))
        dist.barrier()  # neither goes while the other still speaks to it
    finally:
        dist.destroy_process_group()


def ratio(samples: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Median, 10th and 90th percentile over the rounds."""
    ratios = [a / b for a, b in zip(samples[ours], samples[theirs], strict=True)]
    spread = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else ratios
    figures = {"median": statistics.median(ratios), "p10": spread[0], "p90": spread[-1]}
    return {"of": ours, "over": theirs, **figures}


def measure_sharded(workload: Workload, device: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """The first rank's figures, in seconds: ``samples``, ``medians``, and ``once``, what the very
    first step took; and ``ratios``."""
    processes = PROCESSES[device]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _run_rank, (folder, device, workload, rounds), nprocs=processes, join=True
        )
        found = json.loads(pathlib.Path(folder, "0.json").read_text())
    samples = found["samples"]
    return {
        "optimizer": "AdamW",
        "workload": workload.name,
        "tensors": workload.tensors,
        "elements": workload.elements,
        "device": device,
        "processes": processes,
        "backend": BACKENDS[device],
        **found,
        "medians": {name: statistics.median(values) for name, values in samples.items()},
        "ratios": [ratio(samples, *pair) for pair in RATIOS],
    }
