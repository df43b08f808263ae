"""fuse(), replacing torch.optim's own classes, and `python -m fused_optim info`."""

import subprocess
import sys

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
    assert optimizer._fallback_reason is None
    # torch's foreach ASGD computes eta in float32: 1e-8.
    tolerance = 1e-7 if implementation.get("foreach") and cls is fused_optim.ASGD else 1e-12
    assert_same_values(params, other, tolerance, tolerance)
    assert_same_state(optimizer, theirs, tolerance, tolerance)
    assert fused_optim.fuse(optimizer) is optimizer


def test_fuse_reports_what_it_cannot():
    params = make_params([(3,)])
    names = ", ".join(cls.__name__ for cls in FUSED)
    for optimizer in (torch.optim.LBFGS(params), type("Mine", (torch.optim.Adam,), {})(params)):
        with pytest.raises(TypeError, match=rf"no fused counterpart; these have one: {names}"):
            fused_optim.fuse(optimizer)


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
