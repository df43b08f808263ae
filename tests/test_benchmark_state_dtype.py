"""python -m benchmarks --state-dtype, --master-bits, --stochastic-rounding: tables, bytes and roofs
are of what is asked for, and what is measured is, too."""

import json

import pytest
import torch
from benchmark_runs import options_of, run
from rich.console import Console

import fused_optim
from benchmarks import (
    accuracy,
    command_line,
    compare,
    footprint,
    in_cache,
    measure,
    peers,
    progress,
    report,
    training,
    workloads,
)
from benchmarks.kept import FORMATS, STATE_DTYPES, Kept
from fused_optim import compact

SMALL = workloads.Workload("w", [[(64, 3)], [(8,)]])
#: One tensor that has its states in 8 bits where that is asked for, and one that hasn't.
MIXED = workloads.Workload("mixed", [[(64, 64), (100, 10)]])
SMALLEST = Kept("bfloat16", "int8", 24, True)
CODED = 1 + 4 / 128


@pytest.mark.parametrize(
    ("optimizer", "kept", "moved", "held"),
    [
        ("Adam", Kept(), 28, 16),
        ("Adam", Kept("float32", "float32"), 28, 16),
        ("Adam", Kept("float32", "bfloat16"), 3 * 4 + 4 * 2, 2 * 4 + 2 * 2),
        ("Adam", Kept("bfloat16", "float32"), 3 * 2 + 4 * 4, 2 * 2 + 2 * 4),
        ("SGD+momentum", Kept("float32", "bfloat16"), 3 * 4 + 2 * 2, 2 * 4 + 2),
        ("SGD+momentum", Kept("float64", "bfloat16"), 3 * 8 + 2 * 2, 2 * 8 + 2),
        ("NAdam", Kept("float16", "float32"), 3 * 2 + 4 * 4, 2 * 2 + 2 * 4),
        ("AdamW", Kept("bfloat16", None, 32), 3 * 2 + 2 * 2 + 4 * 4, 2 * 2 + 2 + 2 * 4),
        ("AdamW", Kept("bfloat16", "bfloat16", 32, True), 18, 10),
        ("AdamW", Kept("float32", "int8"), 12 + 4 * CODED, 8 + 2 * CODED),
        ("AdamW", SMALLEST, 3 * 2 + 2 + 4 * CODED, 2 * 2 + 1 + 2 * CODED),
        ("Lion", SMALLEST, 3 * 2 + 2 + 2 * CODED, 2 * 2 + 1 + CODED),
    ],
)
def test_bytes_an_element(optimizer, kept, moved, held):
    assert peers.bytes_moved(optimizer, kept) == moved
    assert peers.bytes_held(optimizer, kept) == held


@pytest.mark.parametrize("kept", FORMATS, ids=lambda kept: kept.name)
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD+momentum", "RMSprop", "Lion", "Adagrad"])
def test_bytes_are_those_that_are_there(optimizer, kept):
    (implementation, *_) = peers.implementations(optimizer, "cpu", False, kept)
    groups = measure.make_groups(MIXED, "cpu", kept.dtype)
    built = implementation.build(groups)
    built.step()
    assert built.fallback_reason is None
    params = [p for group in groups for p in group["params"]]
    states = [t for s in built.state.values() for t in s.values() if t.dim() > 0]
    there = sum(t.nbytes for t in [*params, *(p.grad for p in params), *states])
    counted = peers.bytes_held(optimizer, kept, MIXED.sizes) * MIXED.elements
    assert there == pytest.approx(counted)


def test_which_tensors_are_small_is_the_librarys():
    from benchmarks import kept

    assert kept.FEWEST_IN_CODES == compact.FEWEST_IN_CODES


def test_what_our_classes_refuse_is_known():
    for optimizer, (name, options, _) in peers.OPTIMIZERS.items():
        for kept in [Kept("float32", "int8"), Kept("float64", "int8"), Kept("bfloat16", None, 24)]:
            groups = measure.make_groups(MIXED, "cpu", kept.dtype)
            try:
                getattr(fused_optim, name)(groups, **options, **kept.options).step()
            except (RuntimeError, ValueError):
                assert peers.refusal(optimizer, kept), (optimizer, kept)
            else:
                has_states = peers.OPTIMIZERS[optimizer][2]
                assert not (peers.refusal(optimizer, kept) and has_states), (optimizer, kept)


@pytest.fixture
def received(monkeypatch):
    """The keywords that our class gets."""
    seen = []
    real = fused_optim.Adam

    def planted(groups, **options):
        names = ("state_dtype", "master_bits", "stochastic_rounding")
        seen.append({name: options[name] for name in names if name in options})
        return real(groups, **options)

    monkeypatch.setattr(fused_optim, "Adam", planted)
    return seen


EVERY = [*FORMATS, *(Kept("float32", state_dtype, None, True) for state_dtype in STATE_DTYPES)]


@pytest.mark.parametrize("kept", EVERY, ids=lambda kept: kept.name)
def test_only_our_class_is_asked_for_it(received, kept):
    for implementation in peers.implementations("Adam", "cpu", False, kept):
        implementation.build(measure.make_groups(SMALL, "cpu", kept.dtype)).step()
    expected = {
        "state_dtype": kept.state_dtype and getattr(torch, kept.state_dtype),
        "master_bits": kept.master_bits,
        "stochastic_rounding": kept.stochastic_rounding,
    }
    assert received == [{name: value for name, value in expected.items() if value}]


def test_figures_follow_from_it(received, monkeypatch):
    monkeypatch.setattr(measure, "LARGE_ELEMENTS", 100)
    roofs = []
    real = measure.roof_step

    def looked_at(elements, bytes_per_element, device):
        roofs.append(bytes_per_element)
        return real(elements, bytes_per_element, device)

    monkeypatch.setattr(measure, "roof_step", looked_at)
    wide = Kept("bfloat16", "float32")
    for view, kept, expected in (
        (training.STEP, wide, 3 * 2 + 4 * 4),
        (training.AVERAGING, wide, 3 * 2 + 4 * 4 + 4 * 2),
        (training.AVERAGING, Kept("bfloat16", None, 24), 3 * 2 + 2 + 4 * 4 + 2 * 2 + 2 * 4),
    ):
        result = measure.measure("Adam", SMALL, 3, 1, "cpu", view, kept, False)
        assert result.bytes_per_element == roofs.pop() == expected
        assert result.bandwidth == 200 * expected / result.median(peers.OURS)
        assert result.roof_share is not None
    assert {"state_dtype": torch.float32} in received and {"master_bits": 24} in received
    row = json.loads(json.dumps(result.as_dict()))
    assert (row["dtype"], row["master_bits"]) == ("bfloat16", 24)
    assert Kept.of_row(row) == result.kept


def test_it_is_named_in_tables_lines_and_comparisons(received):
    results = [
        measure.measure("Adam", SMALL, 2, 1, compiled=False, kept=kept)
        for kept in (Kept(), Kept("float32", "bfloat16"), SMALLEST)
    ]
    names = ["float32", "float32, states bfloat16", "bfloat16, master 24, states int8, stochastic"]
    assert [r.label for r in results] == ["Adam", *(f"Adam, {name}" for name in names[1:])]
    assert progress.line(results[1]).startswith("Adam, float32, states bfloat16, w: ")
    for table in (report.step_table(results, "t"), report.cost_table(results)):
        column = next(c for c in table.columns if c.header == "dtype")
        assert list(column.cells) == names
    content = {"steps": [r.as_dict() for r in results]}
    same = compare.changes(content, content)
    assert [change.key[2] for change in same] == names
    (older,) = compare.by_key({"steps": [{"optimizer": "Adam", "workload": "w", "view": "step"}]})
    assert older == same[0].key


def test_errors_are_those_of_such_states(received):
    rows = accuracy.measure_accuracy(
        "Adam", "cpu", compiled=False, kept=Kept("float32", "bfloat16")
    )
    assert rows[peers.OURS]["error"] is not None
    assert received == [{"state_dtype": torch.bfloat16}]


def test_the_whole_command_is_about_it(monkeypatch):
    options = options_of(monkeypatch, "--state-dtype", "bfloat16", "--stochastic-rounding")
    plan = command_line.Plan(options)
    expected = Kept("float32", "bfloat16", None, True)
    assert not plan.sweep and {row.kept for row in plan.rows} == {expected}
    plan.rows = plan.rows[:1]
    asked = []

    def looked_at(*arguments, **__):
        asked.append(arguments[6])
        return measure.measure("Adam", SMALL, 2, 1, compiled=False)

    monkeypatch.setattr(command_line, "measure", looked_at)
    content = report.Content({})
    with progress.Progress(Console(quiet=True), 1, 1) as shown:
        plan.run(shown, content)
    assert asked == [expected] and len(content.results) == 1
    with pytest.raises(SystemExit):
        options_of(monkeypatch, "--state-dtype", "float16")


def test_optimizers_that_can_not_are_left_out_unless_named(monkeypatch, capsys):
    plan = command_line.Plan(options_of(monkeypatch, "--state-dtype", "int8"))
    measured = {row.optimizer for row in plan.rows}
    assert {"AdamW", "Lion"} <= measured and not {"Rprop", "ASGD", "Adadelta"} & measured
    plan = command_line.Plan(options_of(monkeypatch, "--master-bits", "24"))
    assert {row.kept for row in plan.rows} == {Kept("bfloat16", None, 24)}
    for arguments, said in (
        (["--optimizer", "Rprop", "--state-dtype", "int8"], "can't be in 8 bits"),
        (["--dtype", "float64", "--state-dtype", "int8"], "float64 parameters can't"),
        (["--dtype", "float16", "--master-bits", "32"], "float16 parameters have no masters"),
    ):
        with pytest.raises(SystemExit):
            options_of(monkeypatch, *arguments)
        assert said in capsys.readouterr().err


def test_kernels_alone(tmp_path):
    result = run(
        "--in-cache", "--optimizer", "AdamW", "--master-bits", "24", "--state-dtype", "int8",
        "--stochastic-rounding", "--rounds", "1", "--output", str(tmp_path),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "in_cache.json").read_text())["in_cache"]
    assert rows and {Kept.of_row(row) for row in rows} == {SMALLEST}
    table = report.in_cache_table(rows)
    assert list(table.columns[1].cells) == [SMALLEST.name]
    for stepper in in_cache.steppers_of("AdamW", SMALLEST):
        (state, *_) = stepper.step.args[0].state.values()
        assert state["exp_avg"].element_size() == 1 and state["remainder"].element_size() == 1


def test_memory(monkeypatch):
    rows = footprint.measure_footprint("AdamW", "cpu", workloads.Workload("w", [[(64, 128)] * 4]))
    ours = {Kept.of_row(row): row for row in rows if row["implementation"] == peers.OURS}
    assert list(ours) == FORMATS
    assert {row["implementation"] for row in rows} >= {peers.OURS, "torch fused"}
    for kept, row in ours.items():
        held = peers.bytes_held("AdamW", kept) - 2 * getattr(torch, kept.dtype).itemsize
        assert row["states"] == pytest.approx(held, abs=0.01)  # and a counter for each tensor
        assert row["step"] == 0
    # Saved as floats, all at once; loaded a tensor after the other.
    coded = ours[Kept("float32", "int8")]
    assert coded["state_dict"] == pytest.approx(8, abs=0.1)
    assert coded["load_state_dict"] == pytest.approx(8 / 4 / 2 + 2 * CODED, abs=0.2)
    assert ours[Kept()]["state_dict"] == pytest.approx(0, abs=0.1)
    table = footprint.memory_table(rows)
    assert table.row_count == len(rows)
    options = options_of(monkeypatch, "--memory")
    assert command_line.runs(options) == [command_line.run_memory]
