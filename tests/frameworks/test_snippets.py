"""The scripts that the documentation shows for each framework run as they are."""

import os
import pathlib
import subprocess
import sys

import pytest

import fused_optim

WITHOUT_TEARDOWN = pathlib.Path(__file__).parents[1] / "without_teardown.py"
SNIPPETS = pathlib.Path(__file__).parents[2] / "docs" / "snippets"
#: DeepSpeed compiles an operator of its own first: by hand.
SCRIPTS = sorted(path.name for path in SNIPPETS.glob("*.py") if path.stem != "deepspeed_zero")


def test_there_are_scripts():
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("name", SCRIPTS)
def test_snippet(name, tmp_path):
    torchrun = [pathlib.Path(sys.executable).parent / "torchrun", "--standalone"]
    ranks = [*torchrun, "--nproc-per-node=2", WITHOUT_TEARDOWN]
    run = ranks if name.startswith("torchrun") else [sys.executable]
    paths = [str(pathlib.Path(fused_optim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "FUSED_OPTIM_STRICT": "1",  # all of them step on the kernels
    }
    result = subprocess.run(
        [*map(str, run), str(SNIPPETS / name)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
