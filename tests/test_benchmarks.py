"""python -m benchmarks: what its commands print and write."""

import copy
import io
import json
import subprocess
import sys

import pytest
import torch
from benchmark_runs import ROOT, options_of, run

from benchmarks import command_line, compare, measure, peers, training


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run of everything on a few tiny tensors: the folder that it wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmarks")
    shapes = folder / "mine.json"
    shapes.write_text(json.dumps({"name": "mine", "groups": [[[3, 4], [5]], [[7]]]}))
    result = run(
        "--workload", str(shapes), "--rounds", "3", "--quick", "--output", str(folder / "out"),
        "--report", str(folder / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder, result.stdout, result.stderr


def test_command_line(tiny_run):
    folder, printed, _ = tiny_run
    assert "mine" in printed and "torch fused" in printed and "against float64" in printed
    content = json.loads((folder / "out" / "steps.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert {row["optimizer"] for row in content["steps"]} == set(peers.OPTIMIZERS)
    for row in content["steps"]:
        assert row["tensors"] == 3 and row["elements"] == 24 and row["view"] == training.STEP
        assert all(len(s) == 3 and min(s) > 0 for s in row["samples"].values())
        assert row["best_torch"] in row["samples"] and row["ratio"] > 0
        assert row["extra_memory"][peers.OURS] == row["calls"][peers.OURS] == 0
        assert row["calls"]["torch for-loop"] >= 3
        for name in set(row["samples"]) - {peers.OURS}:
            assert row["ratios"][name]["p10"] <= row["ratios"][name]["p90"]
    for rows in content["accuracy"].values():
        assert 0 < rows[peers.OURS]["error"] < 1e-3 and not rows[peers.OURS]["wrong"]
    assert (folder / "out" / "ratios.png").stat().st_size > 1000


def test_a_run_without_a_terminal_says_how_far_it_is(tiny_run):
    lines = [x for x in tiny_run[2].splitlines() if x.startswith("[")]
    total = len(peers.OPTIMIZERS)
    assert [x.partition(",")[0] for x in lines] == [f"[{n}/{total}" for n in range(1, total + 1)]
    assert all(", mine: " in x and " ms, torch " in x and "ratio " in x for x in lines)
    assert "\x1b" not in tiny_run[2] and "━" not in tiny_run[2]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_results_come_as_they_are_measured(is_terminal):
    from rich.console import Console

    from benchmarks.progress import Progress, line

    result = measure.Result("w", "AdamW", "cpu", 1, 1, 28, view=training.TRAINING)
    result.samples = {peers.OURS: [1e-3, 2e-3, 3e-3], "torch fused": [4e-3, 8e-3, 12e-3]}
    expected = "AdamW, w, clip + step + zero_grad: 2 ms, torch fused 8 ms, ratio 0.25"
    assert line(result) == expected
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=200 if is_terminal else 20)
    with Progress(console, results=2, rounds=3) as progress:
        progress.begin("AdamW, w")
        progress.after_round()
        progress.end(result)
        assert f"[1/2, 0 s] {expected}\n" in shown.getvalue()
    assert ("━" in shown.getvalue()) == is_terminal
    assert is_terminal or shown.getvalue().count("\n") == 1


@pytest.mark.parametrize("absent", [["rich"], ["rich", "matplotlib"]])
def test_missing_extras_are_one_line_that_says_what_installs_them(absent):
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    code = f"import sys, runpy; {hidden}runpy.run_module('benchmarks', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1 and not result.stdout
    (said,) = result.stderr.splitlines()
    assert said.endswith(f"{sys.executable} -m pip install {' '.join(absent)}")


def test_an_unknown_workload_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--workload", "resnet5O", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "resnet5O is no JSON file, and none of" in result.stderr
    assert "resnet50" in result.stderr and "Traceback" not in result.stderr


def test_the_page_is_self_contained(tiny_run):
    page = (tiny_run[0] / "report.html").read_text()
    assert "data:image/png;base64," in page and "mine" in page and "against float64" in page
    assert "<script" not in page and "http" not in page.replace("data:image", "")


def test_dtypes_are_told_apart_in_tables_json_and_comparisons(tmp_path):
    result = run(
        "--quick", "--workload", "100x64", "--optimizer", "SGD+momentum", "--rounds", "3",
        "--dtype", "bfloat16", "--dtype", "float32", "--dtype", "bfloat16", "--output",
        str(tmp_path), "--report", str(tmp_path / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "steps.json").read_text())
    assert [row["dtype"] for row in content["steps"]] == ["float32", "bfloat16"]
    assert [row["bytes_per_element"] for row in content["steps"]] == [20, 10]
    assert "bfloat16" in result.stdout
    same = compare.changes(content, content)
    assert [change.key[2] for change in same] == ["float32", "bfloat16"]
    assert all(change.factor == 1 for change in same)
    old = copy.deepcopy(content)
    old["steps"] = [row for row in old["steps"] if row.pop("dtype") == "float32"]
    (change,) = compare.changes(old, content)
    assert change.key == ("SGD+momentum", "100 x 64", "float32", training.STEP)


def test_an_interrupted_run_writes_what_it_has(monkeypatch, tmp_path, capsys):
    real = command_line.measure

    def interrupted(optimizer, *arguments, **options):
        if optimizer == "AdamW":
            raise KeyboardInterrupt
        return real(optimizer, *arguments, **options)

    monkeypatch.setattr(command_line, "measure", interrupted)
    options_of(
        monkeypatch, "--quick", "--workload", "100x64", "--optimizer", "Adam", "--optimizer",
        "AdamW", "--optimizer", "Lion", "--rounds", "2", "--output", str(tmp_path),
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 130
    content = json.loads((tmp_path / "steps.json").read_text())
    assert [row["optimizer"] for row in content["steps"]] == ["Adam"]
    printed = capsys.readouterr()
    assert "Adam" in printed.out and "[1/3, " in printed.err and "[2/3, " not in printed.err


def test_compare_finds_a_regression_and_not_noise(tiny_run, tmp_path):
    content = json.loads((tiny_run[0] / "out" / "steps.json").read_text())
    for row in content["steps"]:  # noise of a few percent on twenty rounds
        row["samples"] = {
            name: [(1 + i) * (1 + 0.01 * ((7 * r) % 5)) for r in range(20)]
            for i, name in enumerate(row["samples"])
        }

    def compared(change, only=None):
        changed = copy.deepcopy(content)
        for row in changed["steps"]:
            if only in (None, row["optimizer"]):
                ours = row["samples"][peers.OURS]
                row["samples"][peers.OURS] = [
                    t * change * (1 + 0.01 * (i % 3)) for i, t in enumerate(ours)
                ]
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, data in zip(paths, (content, changed), strict=True):
            path.write_text(json.dumps(data))
        return run("compare", *map(str, paths))

    same, slower, faster = compared(1.0), compared(1.5, "Adam"), compared(0.5)
    assert (same.returncode, slower.returncode, faster.returncode) == (0, 1, 0)
    rows = len(peers.OPTIMIZERS)
    assert f"0 slower, 0 faster, {rows} within noise" in same.stdout
    assert f"1 slower, 0 faster, {rows - 1} within noise" in slower.stdout
    assert "Adam" in slower.stdout
    assert f"0 slower, {rows} faster, 0 within noise" in faster.stdout


def test_noise_alone_is_no_change():
    row = {"optimizer": "Adam", "workload": "w", "view": training.STEP, "best_torch": "torch fused"}
    noisy = {peers.OURS: [1.0, 2.0, 3.0, 1.5] * 5, "torch fused": [1.0] * 20}
    other = {peers.OURS: [1.2, 2.5, 3.1, 1.8] * 5, "torch fused": [1.0] * 20}
    contents = [{"steps": [{**row, "samples": samples}]} for samples in (noisy, other)]
    (change,) = compare.changes(*contents)
    assert change.factor > 1.05 and not change.is_beyond_noise
