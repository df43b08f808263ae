"""python -m benchmarks --in-cache: time and cycles an element, of every instruction set."""

import itertools
import json

import pytest
import torch
from benchmark_runs import run
from twins import SUPPORTED_ISAS

import fused_optim._C as _C
from benchmarks import clock, in_cache, kept, peers, report, workloads


@pytest.mark.parametrize("dtype", in_cache.DTYPES)
def test_all_operands_fit_the_cache_and_fill_most_of_their_part(dtype):
    every = [kept.Kept(dtype, state_dtype) for state_dtype in (None, *kept.STATE_DTYPES)]
    every += [kept.Kept(dtype, "int8", bits, True) for bits in (32, 24)]
    for optimizer, tensors in itertools.product(peers.OPTIMIZERS, every):
        if peers.refusal(optimizer, tensors):
            continue
        smaller, larger = in_cache.sizes(optimizer, tensors)
        held = peers.bytes_held(optimizer, tensors)
        assert smaller >= kept.FEWEST_IN_CODES or tensors.state_dtype != "int8"
        assert 0.9 * in_cache.LARGER_BYTES < larger * held <= in_cache.LARGER_BYTES <= 256 * 1024
        assert smaller % in_cache.MULTIPLE == larger % in_cache.MULTIPLE == 0
        assert 0 < smaller <= larger / in_cache.SHARE


class Planted:
    """A step that takes 5 us and an element's time, twice that with all but the best instructions,
    and longer in some rounds."""

    def __init__(self, size):
        self.size, self.calls = size, 0
        self.step = lambda: None

    def seconds(self, number):
        self.calls += 1
        factor = 1 if _C.isa() == SUPPORTED_ISAS[-1] else 2
        noise = 1 + self.calls % 5
        return 5e-6 + self.size * 2e-9 * factor * noise


class PlantedClock(clock.Clock):
    def look(self):
        self.hertz = 3e9


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(in_cache, "bare", lambda _, workload, dtype: Planted(workload.elements))
    monkeypatch.setattr(in_cache, "Clock", PlantedClock)


def test_what_a_call_costs_is_not_counted(planted):
    rows = in_cache.measure_in_cache("Adam", rounds=11)
    assert [row["isa"] for row in rows] == SUPPORTED_ISAS
    for row in rows:
        expected = 2 if row["isa"] == SUPPORTED_ISAS[-1] else 4
        assert row["ns"] == pytest.approx(expected)
        assert row["cycles"] == pytest.approx(3 * expected)


def test_a_place_in_memory_that_suits_no_cache_is_left(planted, monkeypatch):
    made = []

    def make(_, workload, dtype):
        made.append(Planted(workload.elements * (1 if len(made) >= 4 else 3)))
        return made[-1]

    monkeypatch.setattr(in_cache, "bare", make)
    monkeypatch.setattr(in_cache, "ROUNDS_IN_PLACE", 11)
    best = in_cache.measure_in_cache("Adam", rounds=33)[-1]
    assert len(made) == 3 * 2 and best["ns"] == pytest.approx(2)


def test_a_pass_that_was_disturbed_does_not_count():
    rows = [{"isa": isa, "ns": 1.0, "cycles": 3.0} for isa in ("baseline", "avx2")]
    slow = [{**row, "ns": 9.0, "cycles": 27.0} for row in rows]
    assert in_cache.medians([rows, slow, rows]) == in_cache.medians([rows]) == rows
    unknown = [{**row, "cycles": None} for row in rows]
    assert in_cache.medians([unknown] * 3) == unknown


def test_the_instruction_set_is_put_back(planted, monkeypatch):
    _C.set_isa(SUPPORTED_ISAS[0])
    in_cache.measure_in_cache("Adam", rounds=2)
    assert _C.isa() == SUPPORTED_ISAS[0]
    monkeypatch.setattr(Planted, "seconds", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        in_cache.measure_in_cache("Adam", rounds=2)
    assert _C.isa() == SUPPORTED_ISAS[0]


def test_it_is_our_kernels_on_one_thread_that_are_timed(monkeypatch):
    seen = []
    real = in_cache.bare

    def looked_at(implementation, workload, dtype):
        seen.append((implementation.name, workload.elements, dtype))
        return real(implementation, workload, dtype)

    monkeypatch.setattr(in_cache, "bare", looked_at)
    rows = in_cache.measure_in_cache("SGD+momentum", kept.Kept("bfloat16"), rounds=3)
    sizes = in_cache.sizes("SGD+momentum", kept.Kept("bfloat16"))
    assert seen == [(peers.OURS, size, "bfloat16") for size in sizes]
    assert torch.get_num_threads() == 1
    assert all(0 < row["ns"] < 1000 for row in rows)


def test_a_bare_step_is_the_optimizers_without_hooks(optimizer_class):
    built = []

    def build(groups):
        built.append(optimizer_class(groups))
        return built[-1]

    calls = []
    stepper = in_cache.bare(
        peers.Implementation("ours", build), workloads.Workload("w", [[(40,)]]), "float32"
    )
    (optimizer,) = built
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    (param,) = optimizer.param_groups[0]["params"]
    before = param.detach().clone()
    stepper.step()
    assert not calls and optimizer.fallback_reason is None
    assert (param != before).any() and optimizer.state[param].get("step", 3) == 3
    optimizer.step()
    assert calls


def test_the_clock_counts_additions(monkeypatch):
    add = clock.chain()
    if add is None:
        pytest.skip("no compiler, or a processor whose addition is not known")
    assert add(3, 2) == 3 * 2 * clock.UNROLLED
    seen = clock.Clock()
    seen.look()
    assert 1e8 < seen.hertz < 1e10
    assert seen.cycles(1.0) == seen.hertz
    first = seen.hertz
    monkeypatch.setattr(clock, "LOOPS", 1)  # the call itself is most of the time, so it looks slow
    seen.look()
    assert seen.hertz == first


def test_without_a_compiler_there_are_no_cycles(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert clock.chain.__wrapped__() is None
    monkeypatch.setattr(clock, "chain", clock.chain.__wrapped__)
    seen = clock.Clock()
    seen.look()
    assert seen.cycles(1.0) is None
    row = {"optimizer": "Adam", "dtype": "float32", "state_dtype": None, "isa": "avx2", "ns": 0.5}
    assert "cycles" in report.in_cache_table([{**row, "cycles": 1.5}]).title
    assert "cycles" not in report.in_cache_table([{**row, "cycles": None}]).title


def test_the_command(tmp_path):
    result = run(
        "--in-cache", "--optimizer", "AdamW", "--dtype", "float16", "--dtype", "float32",
        "--rounds", "2", "--output", str(tmp_path), "--report", str(tmp_path / "report.html"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "in_cache.json").read_text())
    rows = [(row["optimizer"], row["dtype"], row["isa"]) for row in content["in_cache"]]
    assert rows == [("AdamW", d, isa) for d in ("float16", "float32") for isa in SUPPORTED_ISAS]
    assert content["machine"]["threads"] == 1 and not content["steps"]
    assert all(isa in result.stdout for isa in SUPPORTED_ISAS) and "AdamW" in result.stdout
    assert "ns an element" in (tmp_path / "report.html").read_text()
    refused = run("--in-cache", "--device", "cuda")
    assert refused.returncode == 2 and "kernels of the CPU" in refused.stderr
