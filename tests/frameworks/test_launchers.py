"""torchrun and `accelerate launch`, with an unmodified script on fused optimizers."""

import os
import pathlib
import subprocess
import sys

import pytest

import fused_optim

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist

if int(os.environ.get("WORLD_SIZE", 1)) > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
if dist.is_initialized():
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
for i in range(3):
    optimizer.zero_grad()
    model(torch.full((2, 4), 1.0 + i)).sum().backward()
    optimizer.step()
total = sum(p.detach().double().sum().item() for p in model.parameters())
# In one write: the processes share their output.
sys.stdout.write(f"{type(optimizer).__module__} {getattr(optimizer, 'fallback_reason', None)} "
                 f"{total:.6f} {sys.argv[1:]}\\n")
sys.stdout.flush()
if dist.is_initialized():
    dist.barrier()  # neither goes while the other still speaks to it
    dist.destroy_process_group()
    os._exit(0)  # without torch's teardown, in which gloo's threads can end the process
"""

BIN = pathlib.Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node=2"],
    "accelerate": [BIN / "accelerate", "launch", "--cpu", "--num_processes=1", "--num_machines=1",
                   "--mixed_precision=no", "--dynamo_backend=no"],
}  # fmt: skip


def launched(launcher, *arguments, cwd):
    paths = [str(pathlib.Path(fused_optim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [*map(str, LAUNCHERS[launcher]), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=cwd, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [line for line in result.stdout.splitlines() if line.endswith("['--epochs', '3']")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_unmodified_script(launcher, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    ours = launched(launcher, "-m", "fused_optim", "run", "train.py", "--epochs", "3", cwd=tmp_path)
    plain = launched(launcher, "train.py", "--epochs", "3", cwd=tmp_path)
    assert len(ours) == len(plain) == (2 if launcher == "torchrun" else 1)
    for line, expected in zip(ours, plain, strict=True):
        module, reason, total, *_ = line.split()
        assert module == "fused_optim.adamw" and reason == "None"
        assert abs(float(total) - float(expected.split()[2])) < 1e-5
