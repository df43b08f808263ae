"""compute-sanitizer watches a short run: no access out of bounds, no race, nothing read that was
never written."""

import pathlib
import shutil
import subprocess
import sys

import pytest
from torch.utils import cpp_extension

SCRIPT = pathlib.Path(__file__).parent / "sanitizer_run.py"


def compute_sanitizer():
    path = pathlib.Path(cpp_extension.CUDA_HOME or "/usr/local/cuda", "bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(path) if path.exists() else None)


@pytest.mark.torch_kernels
@pytest.mark.skipif(compute_sanitizer() is None, reason="there is no compute-sanitizer here")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_a_short_run_is_clean(tool):
    command = [compute_sanitizer(), "--tool", tool, "--error-exitcode", "9", sys.executable, SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert "option sets stepped" in result.stdout
