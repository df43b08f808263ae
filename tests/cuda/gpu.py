"""Whether there is a GPU to test on: a real one, or that of simulated_runtime.cpp."""

import ctypes
import os

import torch

import fused_optim._C as _C

SIMULATED = "FUSED_OPTIM_SIMULATED" in os.environ
_process = ctypes.CDLL(None)  # the preloaded library's functions are the process's own


def why_no_gpu():
    if not torch.cuda.is_available():
        return "there is no GPU here"
    if not _C.cuda_archs():
        return "fused_optim was built without CUDA"
    return None


def simulated_synchronizations():
    """How often the host has waited for the simulated device."""
    return _process.simulated_synchronizations()


def simulated_argument_bytes():
    """The size of the argument of the last kernel of this project that was launched."""
    return _process.simulated_argument_bytes()


def simulated_launches():
    """How many kernels of this project the simulated device was given."""
    return _process.simulated_launches()
