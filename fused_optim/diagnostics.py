"""What ``python -m fused_optim info`` shows: build, machine and fused optimizers."""

import platform

import torch

from fused_optim import _C
from fused_optim._extension import RULES, built_for
from fused_optim._version import __version__
from fused_optim.optimizer import FUSED_CLASSES


def describe() -> str:
    """Version, torch, instruction sets, CUDA, OpenMP runtime and the fused optimizers, a line
    each."""
    rules = {number: name for name, number in RULES.items()}
    fused = [
        f"  {cls.__name__:10} on cpu (rule {rules[cls._rule]})" for cls in FUSED_CLASSES.values()
    ]
    rows = {
        "fused_optim": __version__,
        "built for torch": built_for(),
        "running torch": torch.__version__,
        "Python": platform.python_version(),
        "instruction sets": f"{', '.join(_C.built_isas())} (using {_C.isa()})",
        "CUDA archs": "none (CPU build)",
        "OpenMP runtime": _C.openmp_runtime() or "none",
        "threads": torch.get_num_threads(),
    }
    lines = [f"{name + ':':18}{value}" for name, value in rows.items()]
    return "\n".join([*lines, "fused optimizers:", *sorted(fused)])
