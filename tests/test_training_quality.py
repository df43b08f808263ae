"""python -m benchmarks.training_quality: small models, trained in every format."""

import json
import math

import benchmark_runs  # noqa: F401 (makes the benchmarks importable)
import pytest
import torch

from benchmarks import small_models, training_quality
from benchmarks.kept import FLOAT32, FORMATS, Kept
from benchmarks.peers import OPTIMIZERS

DIGITS, CHARACTERS = small_models.TASKS


@pytest.fixture(autouse=True)
def usual_stance(one_thread):
    yield
    torch.compiler.set_stance("default")


@pytest.mark.parametrize("task", small_models.TASKS, ids=lambda task: task.name)
def test_matrices_are_large_enough_for_8_bits(task):
    pytest.importorskip("sklearn")
    shapes = [p.shape for p in task.make_model().parameters() if p.dim() > 1]
    assert sum(math.prod(shape) >= 4096 for shape in shapes) >= len(shapes) - 1  # but for a head
    assert set(task.rates) <= set(OPTIMIZERS)


def test_the_command_trains_every_format(tmp_path, capsys):
    arguments = ["--task", "characters", "--optimizer", "AdamW", "--seeds", "2", "--steps", "2"]
    arguments += ["--output", str(tmp_path)]
    training_quality.main(arguments)
    rows = json.loads((tmp_path / "training_quality.json").read_text())
    ours = [row for row in rows if row["trained"] not in training_quality.OF_OTHERS]
    names = [row["trained"] for row in ours]
    assert names == [FLOAT32.name, training_quality.CHANCE, *(k.name for k in FORMATS[1:])]
    assert all(len(row["losses"]) == 2 and 3 < row["loss"] < 6 for row in rows)
    printed = capsys.readouterr().out
    assert all(f"| {kept.name} |" in printed for kept in FORMATS) and torch.__version__ in printed
    far = {**rows[1], "optimizer": "Lion", "difference": 0.02, "error": 0.01, "negligible": False}
    lines = training_quality.table("characters", [*rows, far]).splitlines()
    assert lines[0] == "| characters | AdamW | Lion |" and lines[1] == "|---|---|---|"
    assert lines[3].endswith("| **+2.00 ± 1.00 %** |") and lines[4].endswith("|  |")
    assert abs(rows[1]["difference"]) < 1e-4


def test_training_in_float32_with_masters_is_float32s_but_for_gradients():
    """And without, updates are lost."""
    rows = {row.name: row for row in training_quality.rows_of("SGD+momentum")}
    losses = {
        kept: training_quality.train(CHARACTERS, "SGD+momentum", rows[kept.name], 0, 20)
        for kept in (FLOAT32, Kept("bfloat16", None, 32), Kept("bfloat16"))
    }
    exact, master, bare = losses.values()
    assert abs(master / exact - 1) < 1e-3 < abs(bare / exact - 1)


def test_rates_rise_and_fall():
    rates = [training_quality.rate_at(step, 100, 2.0) for step in range(100)]
    assert max(rates) == 2.0 and rates[0] == 0.2 and 0 < rates[-1] < 0.05
    assert rates == [*sorted(rates[:10]), *sorted(rates[10:], reverse=True)]
    tensor_rate = torch.optim.SGD([torch.zeros(1)], lr=torch.tensor(1.0))
    training_quality.set_rate(tensor_rate, 0.5)
    assert tensor_rate.param_groups[0]["lr"].item() == 0.5


def test_what_counts_as_a_difference():
    float32 = [2.00, 2.02, 1.98]
    near = training_quality.compared([loss * 1.002 for loss in float32], float32)
    far = training_quality.compared([loss * 1.004 for loss in float32], float32)
    assert near["negligible"] and not far["negligible"]
    assert near["difference"] == pytest.approx(0.002) and near["error"] < 1e-4
    steady = [2.0, 2.000001, 1.999999]
    assert not training_quality.compared([loss + 0.001 for loss in steady], steady)["negligible"]


def test_too_few_seeds(capsys):
    with pytest.raises(SystemExit):
        training_quality.parse_arguments(["--seeds", "1"])
    assert "at least 2" in capsys.readouterr().err
