"""python -m benchmarks --cold: steps that find nothing in the caches."""

import pytest
import torch
from benchmark_runs import options_of

from benchmarks import command_line, measure, peers, plots, report, training, workloads

SMALL = workloads.Workload("w", [[(3,), (5,)]])


@pytest.fixture
def log(monkeypatch):
    """What is done in which order, where one implementation only logs its steps."""
    done = []

    class Logged:
        def step(self):
            done.append("step")

    def planted(*_):
        yield peers.Implementation(peers.OURS, lambda groups: Logged())
        yield peers.Implementation("torch fused", lambda groups: Logged())

    monkeypatch.setattr(measure, "implementations", planted)
    monkeypatch.setattr(measure, "wrong", lambda *_: None)
    monkeypatch.setattr(measure, "empty_caches", lambda device: done.append("empty"))
    return done


def test_the_caches_are_emptied_before_each_step(log):
    result = measure.measure("AdamW", SMALL, 4, 1, view=training.COLD)
    warm_up = ["step"] * 4
    assert log == warm_up + ["empty", "step"] * 8
    assert (result.view, result.bytes_per_element) == (training.COLD, 28)
    assert [len(s) for s in result.samples.values()] == [4, 4]


def test_emptying_does_not_count_as_time(log, monkeypatch):
    monkeypatch.setattr(measure, "empty_caches", lambda device: measure.time.sleep(0.05))
    result = measure.measure("AdamW", SMALL, 3, 1, view=training.COLD)
    assert max(max(s) for s in result.samples.values()) < 0.04


def test_more_is_written_than_caches_hold():
    written = training._elsewhere("cpu")
    assert written.nbytes == 96_000_000
    before = written.clone()
    training.empty_caches("cpu")
    assert torch.equal(written, before + 1)


def test_what_is_measured_cold(monkeypatch):
    def cold(*arguments):
        rows = command_line.Plan(options_of(monkeypatch, *arguments)).rows
        return {(r.optimizer, r.workload.name) for r in rows if r.view == training.COLD}, rows

    usual, rows = cold("--cold")
    names = {"1000 x 1000", "1000 x 1"}
    assert usual == {(o, w) for o in ("AdamW", "SGD+momentum") for w in names}
    assert len(rows) == len(usual)
    whole, rows = cold()
    assert whole == usual and len(rows) > len(whole)
    assert not cold("--quick")[0]
    assert cold("--workload", "1000x1", "--optimizer", "AdamW")[0] == {("AdamW", "1000 x 1")}
    asked, rows = cold("--cold", "--workload", "resnet50", "--optimizer", "Lion")
    assert asked == {("Lion", "ResNet-50")} and len(rows) == 1
    assert command_line.runs(options_of(monkeypatch, "--cold")) == [command_line.run_steps]


def test_it_has_a_table_and_a_plot_of_its_own(tmp_path):
    content = report.Content(report.machine(1))
    content.results = [
        measure.measure("AdamW", SMALL, 3, 1, view=view, compiled=False)
        for view in (training.STEP, training.COLD)
    ]
    assert plots.plot_cold(tmp_path / "cold.png", content)
    titles = [table.title for table in report.tables(content)]
    assert sum(title.startswith("cold step: ") for title in titles) == 1
    assert not plots.plot_training(tmp_path / "training.png", content)
    content.results.pop()
    assert not plots.plot_cold(tmp_path / "cold.png", content)
