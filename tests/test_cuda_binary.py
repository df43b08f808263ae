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
        r"Function (\S*_kernel_of\S*):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)",
        dump("-res-usage"),
    )
    archs = len(_C.cuda_archs().split(","))
    # The steps; sums and scaling in each dtype, and three ways to finish a norm.
    assert len(usage) >= archs * (kernels_per_arch() + DTYPES * (3 + 1) + 3)
    assert {(stack, local) for _, stack, local in usage} == {("0", "0")}


def test_norms_load_sixteen_bytes_at_a_time_too():
    functions = re.split(r"Function : ", dump("-sass"))[1:]
    sums = [f for f in functions if "13sum_kernel_of" in f.split("\n", 1)[0]]
    assert len(sums) >= DTYPES * 3
    for kernel in sums:
        accesses = re.findall(r"\bLDG\.E(?:\.CONSTANT)?(\.128)?", kernel)
        runs = [len(list(run)) for is_wide, run in itertools.groupby(accesses) if is_wide]
        assert max(runs) >= 4, kernel.split("\n", 1)[0]


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
