"""fuse(), replacing torch.optim's own classes, and `python -m fused_optim info`."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from torch.optim import lr_scheduler
from twins import (
    CASES,
    FUSED,
    TORCH,
    Twins,
    assert_same_state,
    assert_same_values,
    case_id,
    copies,
    make_params,
    set_grads,
)

import fused_optim
from fused_optim.optimizer import FUSED_CLASSES


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, **kwargs
    )


UNFUSED = {fused: parent for parent, fused in FUSED_CLASSES.items()}


@pytest.mark.parametrize("implementation", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_fuse_keeps_object_state_and_numbers(case, implementation):
    cls, options = case
    params = make_params([(5,), (2, 3)], torch.float64)
    if not set(implementation) <= set(UNFUSED[cls](params).defaults):
        pytest.skip("torch's constructor has no such flag")
    optimizer = UNFUSED[cls](params, **options, **implementation)
    other = copies(params)
    theirs = TORCH[cls](other, **options, foreach=False)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    schedulers = [lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (optimizer, theirs)]
    for seed in range(6):
        if seed == 3:
            state = optimizer.state
            assert fused_optim.fuse(optimizer) is optimizer
            assert optimizer.state is state
            assert type(optimizer) is cls
        set_grads(params, other, seed=seed)
        optimizer.step()
        theirs.step()
        for scheduler in schedulers:  # warns if it doesn't see the optimizer's step
            scheduler.step()
    assert len(calls) == 6
    assert optimizer.fallback_reason is None
    # torch's foreach ASGD computes eta in float32: 1e-8.
    tolerance = 1e-7 if implementation.get("foreach") and cls is fused_optim.ASGD else 1e-12
    assert_same_values(params, other, tolerance, tolerance)
    assert_same_state(optimizer, theirs, tolerance, tolerance)
    assert fused_optim.fuse(optimizer) is optimizer


def test_fuse_reports_what_it_cannot():
    names = ", ".join(cls.__name__ for cls in FUSED)
    with pytest.raises(TypeError, match=rf"no fused counterpart; these have one: {names}"):
        fused_optim.fuse(torch.optim.LBFGS(make_params([(3,)])))


class Logged(torch.optim.AdamW):
    """A user's class with all but a step of its own."""

    def __init__(self, params, *, tag, **options):
        super().__init__(params, **options)
        self.tag = tag

    def zero_grad(self, set_to_none=True):
        self.zeroed = True
        super().zero_grad(set_to_none)

    def describe(self):
        return f"{self.tag}: {len(self.param_groups)}"


class OwnStep(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


class OwnGroups(torch.optim.Adam):
    def _init_group(self, *arguments):
        return super()._init_group(*arguments)


def copied_by_pickle(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("hooked", [True, False])
def test_fuse_takes_a_subclass_that_leaves_the_step_alone(hooked, monkeypatch):
    if hooked:  # as torch's constructor leaves it where the subclass is the first to be constructed
        wrapped = torch.optim.Optimizer.profile_hook_step(torch.optim.AdamW.step)
        monkeypatch.setattr(Logged, "step", wrapped, raising=False)
        wrapped.hooked = True
    params = make_params([(5,), (2, 3)])
    other = copies(params)
    optimizer, theirs = Logged(params, tag="a"), torch.optim.AdamW(other, foreach=False)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert fused_optim.fuse(optimizer) is optimizer
    assert isinstance(optimizer, Logged) and isinstance(optimizer, fused_optim.AdamW)
    assert type(optimizer).__name__ == "Logged" and optimizer.describe() == "a: 1"
    optimizer.max_grad_norm = 1e9
    for seed in range(3):
        set_grads(params, other, seed=seed)
        optimizer.step()
        theirs.step()
        optimizer.zero_grad()
    assert optimizer.fallback_reason is None and optimizer.zeroed and len(calls) == 3
    assert_same_values(params, other, 1e-6, 1e-6)
    for copied in (copy.deepcopy(optimizer), copied_by_pickle(optimizer)):
        assert type(copied) is type(optimizer) and copied.max_grad_norm == 1e9
        copied.step()
        assert copied.fallback_reason is None
    assert fused_optim.fuse(optimizer) is optimizer
    assert not isinstance(Logged(params, tag="b"), fused_optim.AdamW)


@pytest.mark.parametrize(
    "cls, part", [(OwnStep, "step"), (OwnGroups, "_init_group")], ids=["step", "groups"]
)
def test_fuse_refuses_a_subclass_with_a_step_of_its_own(cls, part):
    optimizer = cls(make_params([(3,)]), lr=0.1)
    with pytest.raises(TypeError, match=f"{cls.__name__} has no fused counterpart: .* {part} of"):
        fused_optim.fuse(optimizer)
    assert type(optimizer) is cls


class OwnClipping(torch.optim.AdamW):
    max_grad_norm = 0.5


class Registered(torch.optim.SGD):
    def __init_subclass__(cls, *, key, **options):
        super().__init_subclass__(**options)


def test_fuse_refuses_what_it_would_change():
    params = make_params([(3,)])
    by_class, by_attribute = OwnClipping(params), torch.optim.SGD(params, lr=0.1)
    by_attribute.grad_norm = 1.0
    for optimizer, name in ((by_class, "max_grad_norm"), (by_attribute, "grad_norm")):
        cls = type(optimizer)
        with pytest.raises(TypeError, match=f"its attribute {name} would be"):
            fused_optim.fuse(optimizer)
        assert type(optimizer) is cls and "_fused" not in vars(optimizer)
    with pytest.raises(TypeError, match="lets none be made: .*key"):
        fused_optim.fuse(Registered(params, lr=0.1))


def test_a_fused_subclass_goes_with_its_class():
    def made():
        class Mine(torch.optim.SGD):
            pass

        optimizer = fused_optim.fuse(Mine(make_params([(3,)]), lr=0.1))
        return weakref.ref(Mine), weakref.ref(type(optimizer))

    references = made()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_fuse_resets_the_flags_of_what_is_fused_already():
    params = make_params([(3,)])
    for flags in ({"foreach": True}, {"fused": True}, {"fused": False}):
        optimizer = fused_optim.fuse(fused_optim.AdamW(params, **flags))
        assert optimizer.defaults["foreach"] is None and optimizer.defaults["fused"] is None
        set_grads(params, seed=0)
        optimizer.step()
        assert optimizer.fallback_reason is None


def test_fused_scheduled_optimizer_is_not_kept_alive():
    import gc
    import weakref

    optimizer = torch.optim.SGD(make_params([(3,)]), lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    fused_optim.fuse(optimizer)
    reference = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer, scheduler
        assert reference() is None
    finally:
        gc.enable()


def test_info():
    result = command("-m", "fused_optim", "info")
    assert result.returncode == 0, result.stderr
    for word in (fused_optim.__version__, torch.__version__, "baseline", "libgomp", "CUDA"):
        assert word in result.stdout
    for cls in FUSED:
        assert f"{cls.__name__} " in result.stdout


FACTORY = """
from __future__ import annotations
import dataclasses
import torch

def dense():
    return torch.optim.AdamW([torch.ones(3, requires_grad=True)])

def several():
    wide = torch.ones(4, 6)[:, 1:3].detach().requires_grad_()
    return [torch.optim.SGD([wide], lr=0.1), torch.optim.LBFGS([wide])]

def beside_a_scheduler():
    optimizer = dense()
    return {"optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

def model():
    return torch.nn.Linear(2, 2)

@dataclasses.dataclass
class Options:
    lr: float = 0.1

if __name__ == "__main__":
    for optimizer in (dense(), *several()):
        for _ in range(2):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            optimizer.step(lambda: torch.zeros(()))
"""


def test_info_of_a_factory(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(FACTORY)
    info = ("-m", "fused_optim", "info")
    result = command(*info, f"{script}:dense")
    assert result.stdout == "AdamW: would fuse\n", result.stderr
    result = command(*info, f"{script}:beside_a_scheduler")
    assert result.stdout == "AdamW: would fuse\n", result.stderr
    first, second = command(*info, f"{script}:several").stdout.splitlines()
    assert first == "SGD: would take torch's own step: a parameter is not dense in memory"
    assert second.startswith("LBFGS: would not fuse: torch.optim.lbfgs.LBFGS has no fused")
    for wrong, what in (("model", "returned Linear, no optimizer"), ("none", "no function 'none'")):
        result = command(*info, f"{script}:{wrong}")
        assert result.returncode == 1 and what in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = command(*info, f"{tmp_path}/nothing.py:f")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


def test_info_of_a_script(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(FACTORY)
    result = command("-m", "fused_optim", "info", str(script))
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("fused_optim: ")]
    assert said == [
        "fused_optim: AdamW: 2 steps on the fused kernels",
        "fused_optim: SGD: 2 steps by torch's own: a parameter is not dense in memory",
        "fused_optim: LBFGS: 2 steps by torch's own: torch.optim.lbfgs has no fused counterpart",
    ]


def test_would_fuse_changes_nothing(optimizer_class):
    from fused_optim.would_fuse import why_not

    params = make_params([(5,), (2, 3)])
    params[1].grad = torch.ones(2, 3)
    values = [p.detach().clone() for p in params]
    optimizer = optimizer_class(params, max_grad_norm=0.1, zero_grads=True, ema_decay=0.9)
    state = {p: dict(s) for p, s in optimizer.state.items()}
    assert why_not(optimizer) is None
    assert params[0].grad is None and torch.equal(params[1].grad, torch.ones(2, 3))
    assert {p: dict(s) for p, s in optimizer.state.items()} == state
    assert all(map(torch.equal, params, values))


def test_classes_survive_a_rebinding_of_torchs_names():
    """Code that rebinds torch.optim.Adam, `run` too, must not make a class its own parent."""
    result = command(
        "-c",
        "import fused_optim, torch\n"
        "from fused_optim.process import replace_torch_classes\n"
        "before = fused_optim.Adam.__mro__\n"
        "replace_torch_classes(); replace_torch_classes()\n"
        "assert torch.optim.Adam is fused_optim.Adam\n"
        "assert fused_optim.Adam.__mro__ == before\n"
        "w = torch.ones(2, requires_grad=True); w.grad = torch.ones(2)\n"
        "wide = torch.ones(2, 4)[:, 1:3].detach().requires_grad_(); wide.grad = torch.ones(2, 2)\n"
        "fused_optim.Adam([w, wide]).step()\n"
        "assert (w < 1).all() and (wide < 1).all()\n",
    )
    assert result.returncode == 0, result.stderr


def test_twins_are_not_the_same_class():
    """The comparison in all other tests is with torch's code, not with ours twice."""
    for cls in FUSED:
        twins = Twins(cls, {})
        assert type(twins.theirs) is TORCH[cls] is not cls
        assert not hasattr(twins.theirs, "_rule")
