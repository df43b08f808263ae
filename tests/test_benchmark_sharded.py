"""python -m benchmarks --sharded: steps of DTensors in two processes, beside torch's."""

import json

import pytest
from benchmark_runs import options_of, run
from rich.console import Console

import fused_optim
from benchmarks import command_line, report, sharded

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    shapes = folder / "mine.json"
    # A tensor of which one of the two processes has no row.
    shapes.write_text(json.dumps({"name": "mine", "groups": [[[4, 3], [5]], [[1, 2]]]}))
    result = run(
        "--sharded", "--workload", str(shapes), "--rounds", "3", "--output", str(folder / "out"),
        "--report", str(folder / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads((folder / "out" / "sharded.json").read_text())
    return content, result.stdout, (folder / "report.html").read_text()


def test_every_step_is_measured_in_each_round(tiny_run):
    content, _, _ = tiny_run
    assert content["machine"]["threads"] == 1 and not content["steps"]
    (row,) = content["sharded"]
    where = row["device"], row["processes"], row["backend"]
    assert where == ("cpu", 2, "gloo") and (row["tensors"], row["elements"]) == (3, 19)
    assert {name for pair in sharded.RATIOS for name in pair} == {*row["samples"]}
    for name, samples in row["samples"].items():
        assert len(samples) == 3 and 0 < min(samples) <= row["medians"][name] <= max(samples) < 10
    assert all(seconds > 0 for seconds in row["once"].values())
    assert {sharded.OURS, sharded.FUSED, sharded.TORCH_CLIPS} <= {*row["once"]}


def test_ratios_are_of_the_same_round(tiny_run):
    (row,) = tiny_run[0]["sharded"]
    assert [(found["of"], found["over"]) for found in row["ratios"]] == sharded.RATIOS
    for found in row["ratios"]:
        pairs = zip(row["samples"][found["of"]], row["samples"][found["over"]], strict=True)
        assert found["median"] == sorted(a / b for a, b in pairs)[1]


def test_it_is_shown(tiny_run):
    (row,) = tiny_run[0]["sharded"]
    for shown in tiny_run[1:]:
        assert "CPU time a step, one thread of 2 x gloo" in shown and "mine" in shown
        assert all(name in shown for name in row["samples"])


def test_it_is_a_view_of_its_own(monkeypatch):
    runs = command_line.runs(options_of(monkeypatch, "--sharded"))
    assert runs == [command_line.run_sharded]
    asked = []

    def looked_at(workload, device, rounds):
        asked.append((workload.tensors, device, rounds))
        return {}

    monkeypatch.setattr(sharded, "measure_sharded", looked_at)
    for arguments in (["--sharded"], ["--sharded", "--device", "cuda", "--rounds", "2"]):
        content = report.Content({})
        options = options_of(monkeypatch, *arguments)
        command_line.run_sharded(options, content, Console(quiet=True))
        assert len(content.sharded) == 2
    assert asked == [(n, d, r) for d, r in (("cpu", 25), ("cuda", 2)) for n in (150, 1000)]
    with pytest.raises(SystemExit):
        options_of(monkeypatch, "--sharded", "--cold")


def test_only_the_step_counts_as_time():
    spent = []

    def spin():
        start = sharded.time.thread_time()
        while sharded.time.thread_time() - start < 0.02:
            pass
        spent.append(1)

    assert sharded.Timed(lambda: sharded.time.sleep(0.02), spin).seconds() < 0.01
    assert len(spent) == sharded.STEPS
    assert 0.02 <= sharded.Timed(spin).seconds() < 1


def test_a_first_step_is_that_of_a_new_optimizer():
    param = sharded.nn.Parameter(sharded.torch.zeros(3))
    param.grad = sharded.torch.ones(3)
    made = []

    def make():
        made.append(fused_optim.AdamW([param]))
        return made[-1]

    timed = sharded.first_steps(make)
    for number in (1, 2, 3):
        assert timed.seconds() > 0
        assert len(made) == number
    assert all(optimizer.state[param]["step"] == 1 for optimizer in made)


def test_a_step_that_is_torchs_is_no_measure_of_ours():
    param = sharded.nn.Parameter(sharded.torch.zeros(3))
    param.grad = sharded.torch.ones(3)
    with pytest.raises(RuntimeError, match="no step of the kernels"):
        sharded.warmed_up(fused_optim.AdamW([param], foreach=True))
    sharded.warmed_up(fused_optim.AdamW([param]))


def test_one_round_has_a_ratio():
    found = sharded.ratio({"a": [1.0], "b": [4.0]}, "a", "b")
    assert found == {"of": "a", "over": "b", "median": 0.25, "p10": 0.25, "p90": 0.25}
