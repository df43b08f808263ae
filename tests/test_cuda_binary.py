"""The compiled CUDA kernels: no spills, and memory is accessed 16 bytes at a time."""

import functools
import itertools
import pathlib
import re
import subprocess

import pytest
import torch
from torch.utils import cpp_extension
from twins import CASES

import fused_optim._C as _C

DTYPES = 4
#: Packs that a thread loads before it computes, as in csrc/cuda/kernel_body.h.
UNROLL = 2


def cuobjdump():
    """From a CUDA toolkit, or the one that comes with triton, which comes with torch."""
    paths = [pathlib.Path(cpp_extension.CUDA_HOME or "/usr/local/cuda", "bin/cuobjdump")]
    try:
        import triton

        paths.append(pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        pass
    return next((str(path) for path in paths if path.exists()), None)


def why_not():
    if not _C.cuda_archs():
        return "fused_optim was built without CUDA"
    return None if cuobjdump() else "there is no cuobjdump here"


pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@functools.cache
def dump(what):
    return subprocess.run(
        [cuobjdump(), what, _C.__file__], check=True, capture_output=True, text=True
    ).stdout


def kernels_per_arch():
    """Rules times variants times dtypes: the sets of states that options switch on."""
    variants = set()
    for cls, options in CASES:
        param = torch.zeros(1, requires_grad=True)
        param.grad = torch.zeros(1)
        optimizer = cls([param], **options)
        optimizer.step()
        variants.add((cls._rule, *sorted(optimizer.state[param])))
    return DTYPES * len(variants)


def test_no_spills_and_no_stack():
    usage = re.findall(
        r"Function (\S*step_kernel\S*):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)",
        dump("-res-usage"),
    )
    archs = len(_C.cuda_archs().split(","))
    assert len(usage) >= archs * kernels_per_arch()
    assert {(stack, local) for _, stack, local in usage} == {("0", "0")}


def test_sixteen_byte_accesses_with_several_loads_in_flight():
    functions = re.split(r"Function : ", dump("-sass"))[1:]
    kernels = [f for f in functions if "step_kernel" in f.split("\n", 1)[0]]
    assert len(kernels) >= kernels_per_arch()
    for kernel in kernels:
        accesses = re.findall(r"\b(LDG|STG)\.E(\.128)?", kernel)
        wide = [kind for kind, is_wide in accesses if is_wide]
        runs = [len(list(run)) for kind, run in itertools.groupby(wide) if kind == "LDG"]
        stores = wide.count("STG")
        # Every pack of 16 bytes: parameter and states are stored, the gradient only loaded.
        assert stores >= UNROLL, kernel.split("\n", 1)[0]
        assert max(runs) >= 4, kernel.split("\n", 1)[0]
