"""Settings that hold for all tests: two threads, the best instruction set, seeded data."""

import os

import hypothesis
import pytest
import torch
from step_log import registering
from twins import FUSED

import fused_optim._C as _C

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items):
    """The longest test begins first: at the end it would keep one worker, and the others idle."""
    items.sort(key=lambda item: item.path.name != "test_simulated_cuda.py")


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    isa, dtype = _C.isa(), torch.get_default_dtype()
    yield
    _C.set_isa(isa)
    torch.set_default_dtype(dtype)


@pytest.fixture
def one_thread():
    """Thousands of steps that take microseconds: threads that wait for one another take more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FUSED, ids=lambda cls: cls.__name__)
def optimizer_class(request):
    """Each fused class in turn: a new one is tested by being registered."""
    return request.param


@pytest.fixture
def register():
    """Registers step hooks, own and global: register(kind, optimizer, hook)."""
    with registering() as register:
        yield register
