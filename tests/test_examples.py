"""The examples run, and show what they say: equal training with torch.optim and fused_optim."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

pytest.importorskip("sklearn")
pytestmark = pytest.mark.process


@pytest.mark.parametrize("options", [[], ["--recipe"], ["--recipe", "--optimizer", "RMSprop"]])
def test_digits(options):
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), *options],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the other tests want the cores, too
    )  # fmt: skip
    epochs = re.findall(r"^ +\d+ +([\d.]+) +([\d.]+)$", result.stdout, re.MULTILINE)
    assert len(epochs) == 10
    for theirs, ours in epochs:
        assert float(ours) == pytest.approx(float(theirs), rel=1e-2, abs=1e-4)
    their_accuracy, our_accuracy = re.search(
        r"others: ([\d.]+)% and ([\d.]+)%", result.stdout
    ).groups()
    assert abs(float(their_accuracy) - float(our_accuracy)) < 1
    if "RMSprop" not in options:
        assert float(our_accuracy) > 90
