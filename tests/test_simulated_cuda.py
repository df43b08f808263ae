"""The CUDA engine from Python to the launch, where there is no GPU: tests/cuda in a process whose
CUDA runtime is tests/cuda/simulated_runtime.cpp."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch.utils import cpp_extension

import fused_optim._C as _C

ROOT = pathlib.Path(__file__).parents[1]
CUDA_HOME = cpp_extension.CUDA_HOME


def why_not():
    if not _C.cuda_archs():
        return "fused_optim was built without CUDA"
    if torch.cuda.is_available():
        return "there is a GPU: tests/cuda runs on it"
    if CUDA_HOME is None or not pathlib.Path(CUDA_HOME, "include/cuda_runtime_api.h").exists():
        return "no CUDA headers: is CUDA_HOME set?"
    return None


@pytest.mark.process
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_cuda_tests_in_the_simulation(tmp_path):
    library = tmp_path / "simulated_runtime.so"
    # torch looks for the driver's library by this name, and finds it loaded.
    subprocess.run(
        ["c++", "-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC",
         "-Wl,-soname,libcuda.so.1", f"-I{ROOT / 'csrc'}", f"-I{CUDA_HOME}/include",
         str(ROOT / "tests" / "cuda" / "simulated_runtime.cpp"), "-o", str(library)],
        check=True, timeout=300,
    )  # fmt: skip
    environment = {**os.environ, "LD_PRELOAD": str(library), "FUSED_OPTIM_SIMULATED": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests/cuda")],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    report = result.stdout + result.stderr
    assert result.returncode == 0, report[-6000:]
    passed = int(report.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1])
    assert passed > 300, report[-2000:]
