"""What a benchmark run measures: optimizers, workloads and views."""

import json

from benchmark_runs import options_of, run

from benchmarks import command_line, peers, training, workloads


def test_half_types_are_a_small_part_of_a_whole_run(monkeypatch):
    plan = command_line.Plan(options_of(monkeypatch))
    halves = [row for row in plan.rows if row.kept.dtype != "float32"]
    assert {row.kept.dtype for row in halves} == {"bfloat16", "float16"}
    assert {"Adam", "AdamW", "SGD+momentum"} == {row.optimizer for row in halves}
    whole = len(plan.rows) + len(plan.sweep)
    assert len(halves) <= (whole - len(halves)) / 4
    quick = command_line.Plan(options_of(monkeypatch, "--quick"))
    assert {row.kept.dtype for row in quick.rows} == {"float32"}
    asked = command_line.Plan(options_of(monkeypatch, "--dtype", "float16"))
    assert asked.rows and {row.kept.dtype for row in asked.rows} == {"float16"} and not asked.sweep


def test_low_rank_adapters_are_measured_with_what_surrounds_their_step(monkeypatch):
    for arguments, views in (([], training.VIEWS[:3]), (["--quick"], [training.TRAINING])):
        rows = command_line.Plan(options_of(monkeypatch, *arguments)).rows
        adapters = [r for r in rows if r.workload.name == "LoRA 360M" and r.optimizer == "AdamW"]
        assert [r.view for r in adapters] == views


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
