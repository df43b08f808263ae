"""What profilers, traces, modes and torch.compile see of a step: the same as of torch's, and where
nobody looks, nothing is shown."""

import collections
import json
import threading

import pytest
import torch
from torch.autograd import profiler
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from twins import TORCH, make_params

import fused_optim
from fused_optim.fallback import COMPILED

PAIR = (torch.optim.AdamW, fused_optim.AdamW)


def stepped(cls):
    params = make_params([(3,), (2, 2)])
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = cls(params, lr=0.1)
    optimizer.step()  # creates the state
    return optimizer


class Mine(fused_optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


class Inherits(fused_optim.AdamW):
    pass


def by_kineto(run, tmp_path):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        run()
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def by_autograds_profiler(run, tmp_path):
    with profiler.profile() as trace:
        run()
    return [event.name for event in trace.function_events if event.is_user_annotation]


def by_the_legacy_profiler(run, tmp_path):
    c = torch._C._profiler
    flags = [False] * 5
    config = c.ProfilerConfig(c.ProfilerState.CPU, *flags, c._ExperimentalConfig())
    torch._C._autograd._enable_profiler_legacy(config)
    try:
        run()
    finally:
        threads = torch._C._autograd._disable_profiler_legacy()
    return [event.name() for events in threads for event in events if event.kind() == "push"]


def from_another_thread(run, tmp_path):
    options = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(experimental_config=options) as trace:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    return [event.name for event in trace.events()]


def by_an_execution_trace(run, tmp_path):
    path = tmp_path / "execution.json"
    observer = torch.profiler.ExecutionTraceObserver().register_callback(str(path))
    observer.start()
    run()
    observer.stop()
    observer.unregister_callback()
    return [node["name"] for node in json.loads(path.read_text())["nodes"]]


def by_a_mode(run, tmp_path):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_record_function_enter" in str(func):
                seen.append(args[0])
            return func(*args, **(kwargs or {}))

    seen = []
    with Recorder():
        run()
    return seen


OBSERVERS = [
    by_kineto,
    by_autograds_profiler,
    by_the_legacy_profiler,
    from_another_thread,
    by_an_execution_trace,
    by_a_mode,
]


def of_optimizers(names):
    return collections.Counter(name for name in names if name.startswith("Optimizer."))


@pytest.mark.parametrize("observed", OBSERVERS, ids=lambda f: f.__name__)
def test_ranges_are_torchs(observed, tmp_path):
    counts = []
    for cls in PAIR:
        optimizer = stepped(cls)

        def run(optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()
            optimizer.step()

        counts.append(of_optimizers(observed(run, tmp_path)))
    assert counts[1] == counts[0]
    assert counts[1]["Optimizer.step#AdamW.step"] == 2


@pytest.mark.parametrize("observed", OBSERVERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("cls", [Mine, Inherits])
def test_one_range_of_the_users_name(cls, observed, tmp_path):
    optimizer = stepped(cls)
    lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_pre_hook(lambda *_: None)
    names = of_optimizers(observed(optimizer.step, tmp_path))
    assert names == {f"Optimizer.step#{cls.__name__}.step": 1}


def test_range_of_torchs_own_step(tmp_path):
    """Which is called without its wrapper."""
    optimizer = stepped(lambda *a, **k: fused_optim.AdamW(*a, **k, foreach=True))
    assert optimizer.fallback_reason is not None
    names = of_optimizers(by_kineto(optimizer.step, tmp_path))
    assert names == {"Optimizer.step#AdamW.step": 1}


def test_hooks_are_inside_the_range(tmp_path):
    optimizer = stepped(fused_optim.AdamW)

    def hook(*unused):
        with profiler.record_function("hook"):
            pass

    optimizer.register_step_pre_hook(hook)
    optimizer.register_step_post_hook(hook)
    with torch.profiler.profile() as trace:
        optimizer.step()
    hooks = [event for event in trace.events() if event.name == "hook"]
    assert [e.cpu_parent.name for e in hooks] == ["Optimizer.step#AdamW.step"] * 2


def test_python_tracer_finds_parameters_and_state():
    """It looks for calls of _optimizer_step_code."""
    found = []
    for cls in PAIR:
        optimizer = stepped(cls)
        with torch.profiler.profile(with_stack=True, profile_memory=True) as trace:
            optimizer.step()
        events = list(trace.profiler.kineto_results.experimental_event_tree())
        for event in events:
            events.extend(event.children)
        fields = [getattr(event.extra_fields, "optimizer", None) for event in events]
        of_params = [f.parameters for f in fields if f is not None]
        found.append([[sorted(k for k, _ in state) for *_, state in p] for p in of_params])
    assert found[1] == found[0]
    assert found[1] == [[["exp_avg", "exp_avg_sq", "step"]] * 2]


@pytest.fixture
def ranges(monkeypatch):
    """The names of all ranges that are opened."""
    opened = []

    class Range(profiler.record_function):
        def __init__(self, name, args=None):
            opened.append(name)
            super().__init__(name, args)

    monkeypatch.setattr(profiler, "record_function", Range)
    return opened


@pytest.mark.parametrize("cls", [fused_optim.AdamW, Mine, Inherits])
def test_no_range_is_opened_for_nobody(cls, ranges):
    optimizer = stepped(cls)
    del ranges[:]
    optimizer.step()
    optimizer.step(lambda: 1.0)
    optimizer.register_step_post_hook(lambda *_: None)
    optimizer.step()
    handle = register_optimizer_step_post_hook(lambda *_: None)
    optimizer.step()
    handle.remove()
    assert not ranges
    stepped(torch.optim.AdamW)
    assert ranges  # would be seen


def test_a_profiler_that_is_told_from_python(ranges, monkeypatch):
    """torch 2.14's of CUPTI; earlier torchs ask it nothing."""
    optimizer = stepped(fused_optim.AdamW)
    del ranges[:]
    monkeypatch.setattr(profiler, "_active_cupti_profiler_observer", Observer(), raising=False)
    optimizer.step()
    assert ranges == ["Optimizer.step#AdamW.step"]


def test_while_tracing_it_is_torchs_wrapper(ranges, monkeypatch):
    """As tracing knows it: what decides here reads state of the process, which no trace can."""
    optimizer = stepped(fused_optim.AdamW)
    del ranges[:]
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    optimizer.step()
    assert ranges == ["Optimizer.step#AdamW.step"]
    assert optimizer.fallback_reason == COMPILED.reason


class Observer:
    def push_annotation(self, name):
        return 1

    def pop_annotation(self):
        pass


def graphs_of(cls, hooks):
    """The operations that torch.compile captures of four steps, the hooks that ran, and the ranges
    that a profiler sees of the last one."""
    torch._dynamo.reset()
    graphs, calls = [], []

    def backend(graph, example_inputs):
        graphs.append([str(node.name) for node in graph.graph.nodes])
        return graph.forward

    params = make_params([(3,), (2, 2)])
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = cls(params, lr=0.1)
    if hooks:
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    step = torch.compile(optimizer.step, backend=backend)
    for _ in range(3):
        step()
    with torch.profiler.profile() as trace:
        step()
    names = of_optimizers(event.name for event in trace.events())
    return graphs, calls, names, params


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("cls", [fused_optim.SGD, fused_optim.AdamW, Mine])
def test_compiled(cls, hooks):
    *ours, params = graphs_of(cls, hooks)
    *theirs, torchs_params = graphs_of(TORCH.get(cls, torch.optim.AdamW), hooks)
    assert ours == theirs
    graphs, calls, _ = ours
    assert len(graphs) >= 1 and calls == ["pre", "post"] * (4 if hooks else 0)
    assert all(torch.equal(a, b) for a, b in zip(params, torchs_params, strict=True))
