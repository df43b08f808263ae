"""Processes that are the ranks of a gloo group, for as many checks as a test module has."""

import datetime
import importlib
import os
import tempfile
import time
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class Ranks:
    """`run(check, ...)` calls it on all ranks; what one raises fails the test, and so does a rank
    that takes longer than `limit` seconds, as one that waits for another does."""

    def __init__(self, world, limit=60):
        self.world = world
        self.limit = limit
        self._processes = []

    def run(self, check, *arguments):
        if not self._processes:
            self.start(check.__module__)
        for connection in self._connections:
            connection.send((check, arguments))
        deadline = time.monotonic() + self.limit
        failures = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(max(0.0, deadline - time.monotonic())):
                failures.append(f"rank {rank} did not end within {self.limit} s")
                continue
            told = connection.recv()
            if told is not None:
                failures.append(f"rank {rank}:\n{told}")
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))

    def start(self, module):
        context = mp.get_context("spawn")
        store = os.path.join(tempfile.mkdtemp(), "store")
        self._connections = []
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self.world, store, module), daemon=True
            )
            process.start()
            self._processes.append(process)
            self._connections.append(ours)
        for connection in self._connections:
            assert connection.poll(180), "a rank did not start"
            connection.recv()

    def stop(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []


def ranks_of(world, limit=60):
    """A fixture: so many ranks for a module's tests, started before any time is taken."""

    @pytest.fixture(scope="module")
    def started(request):
        ranks = Ranks(world, limit)
        ranks.start(request.module.__name__)
        yield ranks
        ranks.stop()

    return started


def _serve(connection, rank, world, store, module):
    torch.set_num_threads(1)
    importlib.import_module(module)  # takes as long as all of its checks
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    connection.send(None)
    while True:
        check, arguments = connection.recv()
        torch.manual_seed(0)
        try:
            check(*arguments)
            dist.barrier()
            connection.send(None)
        except BaseException:
            connection.send(traceback.format_exc())
