"""python -m benchmarks --state-dtype: bytes in tables and of the roof are those of the states."""

import pytest
import torch
from benchmark_runs import options_of
from rich.console import Console

import fused_optim
from benchmarks import (
    accuracy,
    command_line,
    compare,
    measure,
    peers,
    progress,
    report,
    training,
    workloads,
)

SMALL = workloads.Workload("w", [[(64, 3)], [(8,)]])


@pytest.mark.parametrize(
    ("optimizer", "dtype", "state_dtype", "moved", "held"),
    [
        ("Adam", "float32", None, 28, 16),
        ("Adam", "float32", "float32", 28, 16),
        ("Adam", "float32", "bfloat16", 3 * 4 + 4 * 2, 2 * 4 + 2 * 2),
        ("Adam", "bfloat16", "float32", 3 * 2 + 4 * 4, 2 * 2 + 2 * 4),
        ("SGD+momentum", "float32", "bfloat16", 3 * 4 + 2 * 2, 2 * 4 + 2),
        ("SGD+momentum", "float64", "bfloat16", 3 * 8 + 2 * 2, 2 * 8 + 2),
        ("NAdam", "float16", "float32", 3 * 2 + 4 * 4, 2 * 2 + 2 * 4),
    ],
)
def test_bytes_an_element(optimizer, dtype, state_dtype, moved, held):
    assert peers.bytes_moved(optimizer, dtype, state_dtype) == moved
    assert peers.bytes_held(optimizer, dtype, state_dtype) == held


@pytest.fixture
def received(monkeypatch):
    """The keyword as our class gets it, whether the class knows it yet or not."""
    seen = []
    real = fused_optim.Adam

    def planted(groups, state_dtype=None, **options):
        seen.append(state_dtype)
        return real(groups, **options)

    monkeypatch.setattr(fused_optim, "Adam", planted)
    return seen


@pytest.mark.parametrize("state_dtype", [None, *peers.STATE_DTYPES])
def test_only_our_class_is_asked_for_it(received, state_dtype):
    for implementation in peers.implementations("Adam", "cpu", False, state_dtype):
        implementation.build(measure.make_groups(SMALL, "cpu")).step()
    assert received == [state_dtype and getattr(torch, state_dtype)]


def test_figures_follow_from_it(received, monkeypatch):
    monkeypatch.setattr(measure, "LARGE_ELEMENTS", 100)
    roofs = []
    real = measure.roof_step

    def looked_at(elements, bytes_per_element, device):
        roofs.append(bytes_per_element)
        return real(elements, bytes_per_element, device)

    monkeypatch.setattr(measure, "roof_step", looked_at)
    for view, more in ((training.STEP, 0), (training.AVERAGING, 4 * 2)):
        result = measure.measure("Adam", SMALL, 3, 1, "cpu", view, "bfloat16", False, "float32")
        expected = 3 * 2 + 4 * 4 + more
        assert result.bytes_per_element == roofs.pop() == expected
        assert result.bandwidth == 200 * expected / result.median(peers.OURS)
        assert result.roof_share is not None
    assert set(received) == {torch.float32}
    row = result.as_dict()
    assert (row["dtype"], row["state_dtype"]) == ("bfloat16", "float32")


def test_it_is_named_in_tables_lines_and_comparisons(received):
    results = [
        measure.measure("Adam", SMALL, 2, 1, compiled=False, state_dtype=state_dtype)
        for state_dtype in (None, "bfloat16")
    ]
    assert [r.label for r in results] == ["Adam", "Adam, float32, states bfloat16"]
    assert progress.line(results[1]).startswith("Adam, float32, states bfloat16, w: ")
    for table in (report.step_table(results, "t"), report.cost_table(results)):
        column = next(c for c in table.columns if c.header == "dtype")
        assert list(column.cells) == ["float32", "float32, states bfloat16"]
    content = {"steps": [r.as_dict() for r in results]}
    same = compare.changes(content, content)
    assert [change.key[2] for change in same] == ["float32", "float32, states bfloat16"]
    (older,) = compare.by_key({"steps": [{"optimizer": "Adam", "workload": "w", "view": "step"}]})
    assert older == same[0].key


def test_errors_are_those_of_such_states(received):
    rows = accuracy.measure_accuracy("Adam", "cpu", compiled=False, state_dtype="bfloat16")
    assert rows[peers.OURS]["error"] is not None
    assert received == [torch.bfloat16]


def test_the_whole_command_is_about_it(monkeypatch):
    options = options_of(monkeypatch, "--state-dtype", "bfloat16")
    plan = command_line.Plan(options)
    assert not plan.sweep and {row.dtype for row in plan.rows} == {"float32"}
    plan.rows = plan.rows[:1]
    asked = []

    def looked_at(*_, state_dtype, **__):
        asked.append(state_dtype)
        return measure.measure("Adam", SMALL, 2, 1, compiled=False)

    monkeypatch.setattr(command_line, "measure", looked_at)
    content = report.Content({})
    with progress.Progress(Console(quiet=True), 1, 1) as shown:
        plan.run(shown, content)
    assert asked == ["bfloat16"] and len(content.results) == 1
    with pytest.raises(SystemExit):
        options_of(monkeypatch, "--state-dtype", "float16")
