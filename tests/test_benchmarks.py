"""The benchmarks run, and measure what they say."""

import copy
import io
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

from benchmarks import (  # noqa: E402
    accuracy,
    command_line,
    compare,
    measure,
    memory,
    peers,
    training,
    workloads,
)
from benchmarks.busy import measure_busy  # noqa: E402


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


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


@pytest.mark.parametrize("view", training.VIEWS[1:])
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


def test_shapes_of_a_users_model(tmp_path):
    script = tmp_path / "model.py"
    script.write_text(
        "import torch\n"
        "def net(): return torch.nn.Linear(3, 2)\n"
        "def optimizer():\n"
        "    layer = net()\n"
        "    return torch.optim.SGD([{'params': [layer.weight]}, {'params': [layer.bias]}], lr=1)\n"
    )
    for function, groups in (("net", [[(2, 3), (2,)]]), ("optimizer", [[(2, 3)], [(2,)]])):
        written = tmp_path / f"{function}.json"
        result = run("shapes", f"{script}:{function}", "--output", str(written))
        assert result.returncode == 0, result.stderr
        assert workloads.load(written) == workloads.Workload(function, groups)
    assert run("shapes", str(script)).returncode == 2


@pytest.mark.parametrize("dtype", peers.DTYPES)
def test_bytes_follow_the_dtype(dtype):
    size = peers.bytes_of(dtype)
    assert size == getattr(torch, dtype).itemsize
    assert peers.bytes_moved("Adam", dtype) == 7 * size
    assert peers.bytes_moved("SGD+momentum", dtype) == 5 * size
    assert peers.bytes_moved("NAdam", dtype) == 7 * size  # mu_product is one element
    assert peers.bytes_held("Adam", dtype) == 4 * size
    workload = workloads.Workload("w", [[(300,)], [(40, 2)]])
    for group in measure.make_groups(workload, "cpu", dtype):
        for p in group["params"]:
            assert p.dtype == p.grad.dtype == getattr(torch, dtype) and p.grad.any()
    result = measure.measure("Adam", workload, 2, 1, dtype=dtype, compiled=False)
    assert (result.dtype, result.bytes_per_element) == (dtype, 7 * size)
    trained = measure.measure("Adam", workload, 2, 1, "cpu", training.AVERAGING, dtype, False)
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


def options_of(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command_line.parse_arguments()


def test_half_types_are_a_small_part_of_a_whole_run(monkeypatch):
    plan = command_line.Plan(options_of(monkeypatch))
    halves = [row for row in plan.rows if row.dtype != "float32"]
    assert {row.dtype for row in halves} == {"bfloat16", "float16"}
    assert {"Adam", "AdamW", "SGD+momentum"} == {row.optimizer for row in halves}
    whole = len(plan.rows) + len(plan.sweep)
    assert len(halves) <= (whole - len(halves)) / 4
    assert all(
        r.dtype == "float32" for r in command_line.Plan(options_of(monkeypatch, "--quick")).rows
    )
    asked = command_line.Plan(options_of(monkeypatch, "--dtype", "float16"))
    assert asked.rows and {row.dtype for row in asked.rows} == {"float16"} and not asked.sweep


def test_low_rank_adapters_are_measured_with_what_surrounds_their_step(monkeypatch):
    for arguments, views in (([], training.VIEWS), (["--quick"], [training.TRAINING])):
        rows = command_line.Plan(options_of(monkeypatch, *arguments)).rows
        adapters = [r for r in rows if r.workload.name == "LoRA 360M" and r.optimizer == "AdamW"]
        assert [r.view for r in adapters] == views


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_that_leaves_elements_out_is_not_the_best_of_torchs(dtype):
    """What torch's fused SGD does to half types decides, in the torch that is installed."""
    from benchmarks import report

    param = torch.ones(1024, dtype=getattr(torch, dtype), requires_grad=True)
    param.grad = torch.ones_like(param)
    torch.optim.SGD([param], lr=0.5, fused=True).step()
    is_wrong = bool((param == 1).any())
    small = workloads.Workload("w", [[(64,)]])
    result = measure.measure("SGD+momentum", small, 2, 1, dtype=dtype, compiled=False)
    assert ("torch fused" in result.wrong) == is_wrong
    result.samples["torch fused"] = [1e-9, 1e-9]  # by far the fastest
    assert (result.best_torch == "torch fused") != is_wrong
    assert ("WRONG" in report.time_cell(result, "torch fused")) == is_wrong
    lines = report.remarks(report.Content({}, [result]))
    assert any("leaves elements unchanged" in line for line in lines) == is_wrong
    assert not measure.measure("Adam", small, 2, 1, dtype=dtype, compiled=False).wrong


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


def test_shapes_are_those_of_the_models():
    standard = workloads.standard("cpu")
    assert (standard["resnet50"].tensors, standard["resnet50"].elements) == (161, 25_557_032)
    assert (standard["gpt2"].tensors, standard["gpt2"].elements) == (148, 124_439_808)
    assert len(standard["465groups"].groups) == standard["465groups"].tensors == 465
    assert len(standard["rf_detr"].groups) == standard["rf_detr"].tensors == 499
    assert (standard["vit_b_16"].tensors, standard["vit_b_16"].elements) == (152, 86_567_656)
    assert standard["gaussians"].elements == 59_000_000 and len(standard["gaussians"].groups) == 6
    for name, elements in (("lora_7b", 19_988_480), ("lora_360m", 4_341_760)):
        adapters = standard[name]
        assert (adapters.tensors, adapters.elements) == (32 * 7 * 2, elements)
        assert all(min(shape) == 8 for shape in adapters.groups[0])
    llama = workloads.standard("cuda")["llama_3_2_1b"]
    assert (llama.tensors, llama.elements) == (146, 1_235_814_400)
    for path in workloads.FILES.glob("*.json"):
        assert json.loads(path.read_text())["source"]


def test_every_fused_optimizer_is_measured():
    from twins import FUSED

    assert {name for name, _, _ in peers.OPTIMIZERS.values()} == {c.__name__ for c in FUSED}


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
