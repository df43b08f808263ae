"""The tests of this folder run on a GPU, or in the simulation that test_simulated_cuda.py sets up.
Without either they are skipped."""

import contextlib
import warnings

import pytest
import torch
from gpu import SIMULATED, simulated_synchronizations, why_no_gpu


@pytest.fixture(autouse=True)
def gpu(request):
    if why_no_gpu():
        pytest.skip(why_no_gpu())
    if SIMULATED and request.node.get_closest_marker("torch_kernels"):
        pytest.skip("the simulation has none of torch's own kernels")
    if not SIMULATED and request.node.get_closest_marker("simulation"):
        pytest.skip("only the simulation does this on demand")


@pytest.fixture
def default_device(gpu):
    """Puts every tensor on the GPU that does not say where it belongs."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.fixture
def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")


@pytest.fixture
def synchronizations():
    """Counts the host's waits for the device; on a GPU, torch raises at each that it knows of."""

    @contextlib.contextmanager
    def counting():
        before = simulated_synchronizations() if SIMULATED else 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield lambda: waits
            waits = simulated_synchronizations() - before if SIMULATED else 0
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return counting
