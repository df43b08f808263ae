"""How steps fare while other processes want the cores: percentiles of single steps."""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measure import prepared
from benchmarks.peers import OURS, implementations
from benchmarks.workloads import Workload


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without end, for the duration of the context."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def measure_busy(workload: Workload, steps: int, threads: int) -> list[dict[str, Any]]:
    """Each step of Adam timed by itself, ours and torch's fused in turn.

    Returns:
        A row for each implementation and number of busy processes (0, 1, 2), seconds a step:
        ``median``, ``p95`` and ``max``.
    """
    torch.set_num_threads(threads)
    compared = [i for i in implementations("Adam", "cpu") if i.name in (OURS, "torch fused")]
    steppers = {i.name: prepared(i, workload, "cpu").step for i in compared}
    rows = []
    for processes in (0, 1, 2):
        with busy_processes(processes):
            for name, step in steppers.items():
                times = []
                for _ in range(steps):
                    start = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - start)
                rows.append(
                    {
                        "workload": workload.name,
                        "implementation": name,
                        "busy": processes,
                        "median": statistics.median(times),
                        "p95": statistics.quantiles(times, n=20)[-1],
                        "max": max(times),
                    }
                )
    return rows
