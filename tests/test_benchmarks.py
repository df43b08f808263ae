"""The benchmarks run, and measure what they say."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[1]
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT))

from benchmarks import measure, peers, workloads  # noqa: E402
from benchmarks.busy import measure_busy  # noqa: E402


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


def test_command_line(tmp_path):
    shapes = tmp_path / "mine.json"
    shapes.write_text(json.dumps({"name": "mine", "groups": [[[3, 4], [5]], [[7]]]}))
    result = run("--workload", str(shapes), "--rounds", "3", "--output", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "mine" in result.stdout and "torch fused" in result.stdout
    content = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert {row["optimizer"] for row in content["steps"]} == set(peers.OPTIMIZERS)
    for row in content["steps"]:
        assert row["tensors"] == 3 and row["elements"] == 24
        assert all(len(s) == 3 and min(s) > 0 for s in row["samples"].values())
        assert row["best_torch"] in row["samples"] and row["ratio"] > 0
    assert (tmp_path / "out" / "ratios.png").stat().st_size > 1000


def test_shapes_are_those_of_the_models():
    standard = workloads.standard("cpu")
    assert (standard["resnet50"].tensors, standard["resnet50"].elements) == (161, 25_557_032)
    assert (standard["gpt2"].tensors, standard["gpt2"].elements) == (148, 124_439_808)
    assert len(standard["465groups"].groups) == standard["465groups"].tensors == 465


def test_every_fused_optimizer_is_measured():
    from twins import FUSED

    assert {name for name, _, _ in peers.OPTIMIZERS.values()} == {c.__name__ for c in FUSED}


def test_our_steps_run_on_the_kernels():
    for optimizer in peers.OPTIMIZERS:
        for implementation in peers.implementations(optimizer, "cpu"):
            built = implementation.build(
                measure.make_groups(workloads.Workload("w", [[(3,)], [(4, 2)]]), "cpu")
            )
            built.step()
            if implementation.name == peers.OURS:
                assert built._fallback_reason is None
            else:
                assert not hasattr(built, "_rule")


def test_ratio_is_ours_over_the_best_of_torchs():
    result = measure.Result("w", "Adam", "cpu", 1, 1, 28)
    result.samples = {
        peers.OURS: [1.0, 2.0, 3.0],
        "torch fused": [2.0, 4.0, 6.0],
        "torch foreach": [10.0, 10.0, 10.0],
        measure.ROOFS["cpu"]: [0.5, 1.0, 1.5],
    }
    assert result.best_torch == "torch fused"
    assert result.ratio == 0.5
    assert result.roof_share == 2.0**-1


def test_busy_rows():
    rows = measure_busy(workloads.Workload("w", [[(8,)]]), steps=30, threads=1)
    assert [row["busy"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert all(0 < row["median"] <= row["p95"] <= row["max"] for row in rows)
