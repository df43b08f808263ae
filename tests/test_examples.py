"""The examples run, and show what they say: equal training with torch.optim and fused_optim, on one
process and on several."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

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


def launched(processes, *options):
    """What a sharded training printed: loss and gradient norm of each epoch, and all of it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    runner = [f"--nproc-per-node={processes}", str(ROOT / "tests" / "without_teardown.py")]
    script = str(ROOT / "examples" / "train_sharded.py")
    result = subprocess.run(
        [*torchrun, *runner, script, *options],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    epochs = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+)$", result.stdout, re.MULTILINE)
    return {int(n): (float(loss), float(norm)) for n, loss, norm in epochs}, result.stdout


def trained_by_torch(epochs):
    """What a sharded training should print: the same model on one process, with torch alone."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    images, labels = digits.load()
    model = digits.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    printed = {}
    for epoch in range(1, epochs + 1):
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(epoch))
        total = 0.0
        for batch in order.split(digits.BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), digits.MAX_NORM)
            optimizer.step()
            total += loss.item() * len(batch)
        printed[epoch] = total / 1500, norm.item()
    return printed


def test_sharded_training_continues_on_another_number_of_processes(tmp_path):
    began, _ = launched(2, "--epochs", "2", "--checkpoints", str(tmp_path))
    went_on, said = launched(1, "--resume", "--epochs", "4", "--checkpoints", str(tmp_path))
    assert [*began] == [1, 2] and [*went_on] == [3, 4]
    for epoch, expected in trained_by_torch(4).items():
        assert (began | went_on)[epoch] == pytest.approx(expected, rel=1e-2)
    assert float(re.search(r"others: ([\d.]+)%", said)[1]) > 90
    assert "fallback_reason: None" in said
