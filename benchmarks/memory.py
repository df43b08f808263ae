"""How much memory there is, and how much a step allocates."""

import pathlib
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def available(device: str) -> int:
    """Bytes that can still be allocated."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def profiled(step: Callable[[], object], device: str) -> tuple[int, int]:
    """What torch's profiler sees of one step.

    Returns:
        The peak of the bytes that torch allocates during the step, and how often the step calls
        for work: kernels launched on a GPU, torch operators on the CPU. Kernels that don't go
        through torch's dispatcher, ours included, are no operators.
    """
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())  # type: ignore[union-attr]
    peak = current = calls = 0
    on_gpu = torch.autograd.DeviceType.CUDA
    for event in events:
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
        elif device == "cuda":
            calls += event.device_type() == on_gpu and not event.name().startswith("Mem")
        else:
            calls += event.name().startswith("aten::")
    return peak, calls
