"""The benchmarks measure what they say."""

import benchmark_runs  # noqa: F401 (makes the benchmarks importable)
import pytest
import torch

from benchmarks import accuracy, kept, measure, memory, peers, training, workloads
from benchmarks.busy import measure_busy


def test_sweeps_and_training_view_and_plots(tmp_path):
    from benchmarks import plots, report

    content = report.Content(report.machine(1))
    small = [*workloads.count_sweep(3), *workloads.size_sweep(8)]
    content.sweep = [measure.measure("Adam", w, 3, 1, compiled=False) for w in small]
    assert [r.tensors for r in content.sweep] == [1, 3, 1, 1]
    assert [r.elements for r in content.sweep] == [1000, 3000, 64, 256]
    assert plots.plot_scaling(tmp_path / "scaling.png", content)
    assert not plots.plot_bandwidth(tmp_path / "bandwidth.png", content)
    for view, bytes_ in ((training.TRAINING, 20 + 8), (training.AVERAGING, 20 + 16)):
        trained = measure.measure("SGD+momentum", small[1], 3, 1, view=view, compiled=False)
        assert trained.ratio > 0 and not trained.calls
        assert trained.bytes_per_element == bytes_
        content.results.append(trained)
    assert plots.plot_training(tmp_path / "training.png", content)
    assert not plots.plot_ratios(tmp_path / "ratios.png", content)


@pytest.mark.parametrize("view", training.SURROUNDED)
def test_training_views_do_the_same_in_one_call_and_in_torchs(view):
    workload = workloads.Workload("w", [[(300,)], [(40, 2)]])
    built = {}
    for name in (peers.OURS, "torch fused"):
        (implementation,) = (i for i in peers.implementations("AdamW", "cpu") if i.name == name)

        def build(groups, implementation=implementation, name=name):
            built[name] = (groups, implementation.build(groups))
            return built[name][1]

        stepper = measure.prepared(peers.Implementation(name, build), workload, "cpu", view)
        for _ in range(2):
            stepper.restore()
            params = [p for group in built[name][0] for p in group["params"]]
            assert all((p.grad == 0.01).all() for p in params)
            stepper.step()
            assert not any(p.grad.any() for p in params)
    (ours, optimizer), (theirs, _) = built.values()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a["params"], b["params"])
    assert optimizer.grad_norm.item() == pytest.approx(0.01 * 380**0.5)
    has_average = view == training.AVERAGING
    assert all(("ema" in state) == has_average for state in optimizer.state.values())


@pytest.mark.parametrize("dtype", kept.DTYPES)
def test_bytes_follow_the_dtype(dtype):
    size, plain = kept.bytes_of(dtype), kept.Kept(dtype)
    assert size == getattr(torch, dtype).itemsize
    assert peers.bytes_moved("Adam", plain) == 7 * size
    assert peers.bytes_moved("SGD+momentum", plain) == 5 * size
    assert peers.bytes_moved("NAdam", plain) == 7 * size  # mu_product is one element
    assert peers.bytes_held("Adam", plain) == 4 * size
    workload = workloads.Workload("w", [[(300,)], [(40, 2)]])
    for group in measure.make_groups(workload, "cpu", dtype):
        for p in group["params"]:
            assert p.dtype == p.grad.dtype == getattr(torch, dtype) and p.grad.any()
    result = measure.measure("Adam", workload, 2, 1, kept=plain, compiled=False)
    assert (result.kept.dtype, result.bytes_per_element) == (dtype, 7 * size)
    trained = measure.measure("Adam", workload, 2, 1, "cpu", training.AVERAGING, plain, False)
    assert trained.bytes_per_element == 11 * size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_without_a_gradient_have_no_moments_either(dtype):
    embedding = workloads.standard("cpu")["embedding"]
    assert (embedding.elements, embedding.nonzero_rows) == (30_522 * 768, 0.1)
    small = workloads.Workload("w", [[(1000, 8)]], nonzero_rows=0.1)
    for implementation in peers.implementations("Adam", "cpu", compiled=False):
        groups = measure.make_groups(small, "cpu", dtype)
        (param,) = groups[0]["params"]
        optimizer = implementation.build(groups)
        for _ in range(3):
            optimizer.step()
        zero = (param.grad == 0).all(dim=1)
        assert 850 < zero.sum() < 950 and param.grad[~zero].any(dim=1).all()
        assert not zero[:850].all() and not zero[-850:].all()
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[param][name]
            assert not moment[zero].any() and moment[~zero].any(dim=1).all()
    (dense,) = measure.make_groups(workloads.Workload("w", [[(1000, 8)]]), "cpu")
    assert (dense["params"][0].grad != 0).any(dim=1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_that_leaves_elements_out_is_not_the_best_of_torchs(dtype):
    """What torch's fused SGD does to half types decides, in the torch that is installed."""
    from benchmarks import report

    param = torch.ones(1024, dtype=getattr(torch, dtype), requires_grad=True)
    param.grad = torch.ones_like(param)
    torch.optim.SGD([param], lr=0.5, fused=True).step()
    is_wrong = bool((param == 1).any())
    small = workloads.Workload("w", [[(64,)]])
    result = measure.measure("SGD+momentum", small, 2, 1, kept=kept.Kept(dtype), compiled=False)
    assert ("torch fused" in result.wrong) == is_wrong
    result.samples["torch fused"] = [1e-9, 1e-9]  # by far the fastest
    assert (result.best_torch == "torch fused") != is_wrong
    assert ("WRONG" in report.time_cell(result, "torch fused")) == is_wrong
    lines = report.remarks(report.Content({}, [result]))
    assert any("leaves elements unchanged" in line for line in lines) == is_wrong
    assert not measure.measure("Adam", small, 2, 1, kept=kept.Kept(dtype), compiled=False).wrong


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
@pytest.mark.filterwarnings("ignore:.*stands still")
def test_fewer_bits_are_not_wrong(state_dtype):
    kept_so = kept.Kept(state_dtype=state_dtype)
    rows = accuracy.measure_accuracy("AdamW", "cpu", compiled=False, kept=kept_so)
    ours, torchs = rows[peers.OURS], rows[peers.FOR_LOOP]
    assert not ours["wrong"]
    assert state_dtype == "bfloat16" or ours["error"] > accuracy.WRONG * torchs["error"]


def test_a_wrong_optimizer_is_flagged(monkeypatch):
    """A relative error of 1e-5 in the update."""

    class Wrong(torch.optim.Adam):
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(1 + 1e-5)

    options = peers.OPTIMIZERS["Adam"][1]
    real = peers.implementations

    def planted(*arguments):
        yield from real(*arguments)
        yield peers.Implementation("wrong", lambda groups: Wrong(groups, **options))
        yield peers.Implementation("broken", lambda groups: 1 / 0)

    monkeypatch.setattr(accuracy, "implementations", planted)
    rows = accuracy.measure_accuracy("Adam", "cpu", compiled=False)
    assert rows["wrong"]["wrong"]
    assert "ZeroDivisionError" in rows["broken"]["failed"]
    assert not any(row["wrong"] for name, row in rows.items() if name != "wrong")


def test_a_failing_peer_does_not_end_the_run(monkeypatch):
    real = peers.implementations

    def planted(*arguments):
        yield from real(*arguments)
        yield peers.Implementation("broken", lambda groups: 1 / 0)

    monkeypatch.setattr(measure, "implementations", planted)
    workload = workloads.Workload("w", [[(3,)]])
    result = measure.measure("Adam", workload, 2, 1, compiled=False)
    assert "ZeroDivisionError" in result.errors["broken"] and "broken" not in result.samples


def test_profiled_memory_and_operators():
    def step():
        first = torch.ones(1000)
        second = first * 2
        del first
        return second * 3

    step()
    peak, calls = memory.profiled(step, "cpu")
    assert 8000 <= peak < 8100 and calls >= 3  # and a few bytes for the numbers


def test_our_steps_run_on_the_kernels():
    for optimizer in peers.OPTIMIZERS:
        for implementation in peers.implementations(optimizer, "cpu", compiled=False):
            built = implementation.build(
                measure.make_groups(workloads.Workload("w", [[(3,)], [(4, 2)]]), "cpu")
            )
            built.step()
            if implementation.name == peers.OURS:
                assert built.fallback_reason is None
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
