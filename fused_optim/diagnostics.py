"""What ``python -m fused_optim info`` shows: build, machine and fused optimizers."""

import platform

import torch

from fused_optim import _C
from fused_optim._extension import RULES, built_for
from fused_optim._version import __version__
from fused_optim.optimizer import FUSED_CLASSES


def _gpus() -> str:
    """The GPUs that torch sees, with their compute capability."""
    if not torch.cuda.is_available():
        return "none"
    numbers = range(torch.cuda.device_count())
    capabilities = [".".join(map(str, torch.cuda.get_device_capability(i))) for i in numbers]
    return ", ".join(f"{torch.cuda.get_device_name(i)} ({capabilities[i]})" for i in numbers)


def describe() -> str:
    """Version, torch, instruction sets, CUDA, OpenMP runtime and the fused optimizers, a line
    each."""
    rules = {number: name for name, number in RULES.items()}
    devices = "cpu, cuda" if _C.cuda_archs() else "cpu"
    fused = [
        f"  {cls.__name__:10} on {devices} (rule {rules[cls._rule]})"
        for cls in FUSED_CLASSES.values()
    ]
    rows = {
        "fused_optim": __version__,
        "built for torch": built_for(),
        "running torch": torch.__version__,
        "Python": platform.python_version(),
        "instruction sets": f"{', '.join(_C.built_isas())} (using {_C.isa()})",
        "CUDA archs": _C.cuda_archs() or "none (built without CUDA)",
        "GPUs": _gpus(),
        "OpenMP runtime": _C.openmp_runtime() or "none",
        "threads": torch.get_num_threads(),
    }
    lines = [f"{name + ':':18}{value}" for name, value in rows.items()]
    return "\n".join([*lines, "fused optimizers:", *sorted(fused)])
