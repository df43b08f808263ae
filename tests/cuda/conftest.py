"""Where the tests of this folder run: on a GPU, or in the simulation that test_simulated.py sets
up. Without either they are skipped."""

import contextlib
import ctypes
import os

import pytest
import torch

import fused_optim._C as _C

SIMULATED = "FUSED_OPTIM_SIMULATED" in os.environ
SIMULATED_RUNTIME = ctypes.CDLL(None)  # the preloaded library's functions are the process's own


def why_not():
    if not torch.cuda.is_available():
        return "there is no GPU here"
    if not _C.cuda_archs():
        return "fused_optim was built without CUDA"
    return None


@pytest.fixture(autouse=True)
def gpu(request):
    if why_not():
        pytest.skip(why_not())
    if SIMULATED and request.node.get_closest_marker("torch_kernels"):
        pytest.skip("the simulation has none of torch's own kernels")


@pytest.fixture
def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")


@pytest.fixture
def synchronizations():
    """Counts the host's waits for the device; on a GPU, torch raises at each that it knows of."""

    @contextlib.contextmanager
    def counting():
        before = SIMULATED_RUNTIME.simulated_synchronizations() if SIMULATED else 0
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield lambda: waits
            waits = SIMULATED_RUNTIME.simulated_synchronizations() - before if SIMULATED else 0
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return counting
