"""What is written into a parameter group by hand, which no constructor has checked."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from twins import assert_unchanged, same_bits, snapshot

import fused_optim
from fused_optim.step_options import STEP_OPTIONS
from fused_optim.would_fuse import why_not

OTHERS = {
    "max_grad_norm": 0.5,
    "skip_nonfinite": True,
    "zero_grads": True,
    "ema_decay": 0.9,
    "ema_dtype": torch.float32,
    "norm_group": "a group",
    "rounding_seed": 7,
}


def make(cls, dtype=torch.bfloat16, **options):
    params = [Parameter(torch.full((5000,), 0.5, dtype=dtype)) for _ in range(2)]
    for p in params:
        p.grad = torch.linspace(-1, 1, 5000).to(dtype)
    return params, cls([{"params": [p]} for p in params], **options)


def step_compiled(optimizer):
    torch.compile(optimizer.step, backend="eager")()


@pytest.mark.parametrize("name", [*STEP_OPTIONS, "norm_group"])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"stochastic_rounding": True}])
def test_options_of_the_whole_optimizer(name, options):
    """Nothing would look at them there, and a seed above all would go unnoticed."""
    params, optimizer = make(fused_optim.AdamW, **options)
    optimizer.step()
    optimizer.param_groups[1][name] = OTHERS[name]
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"AdamW: group 1 has {name}=.*Nothing was changed"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=f"group 1 has {name}"):
        why_not(optimizer)
    assert_unchanged(optimizer, before)
    assert optimizer.param_groups[1][name] == OTHERS[name]
    # What says the same is no other option: wrappers write it into each group.
    optimizer.param_groups[1][name] = getattr(optimizer, name)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 2]
    assert (optimizer.fallback_reason is None) == ("foreach" not in options)


@pytest.mark.parametrize("value", [torch.tensor([1.0, 2.0]), np.array([1.0, 2.0])], ids=type)
@pytest.mark.parametrize("options", [{}, {"foreach": True}])
def test_options_that_can_not_be_compared(value, options):
    _, optimizer = make(fused_optim.AdamW, **options)
    optimizer.param_groups[1]["zero_grads"] = value
    with pytest.raises(RuntimeError, match="AdamW: group 1 has zero_grads=.*Nothing was changed"):
        optimizer.step()
    assert not optimizer.state


def test_options_in_a_group_without_parameters():
    """Where the kernels look at nothing else."""
    _, optimizer = make(fused_optim.AdamW)
    optimizer.add_param_group({"params": []})
    optimizer.step()
    optimizer.param_groups[2]["max_grad_norm"] = 1.0
    with pytest.raises(RuntimeError, match="AdamW: group 2 has max_grad_norm=1.0"):
        optimizer.step()
    del optimizer.param_groups[2]["max_grad_norm"]
    optimizer.step()


def test_options_of_the_whole_optimizer_where_steps_are_compiled():
    _, optimizer = make(fused_optim.AdamW)
    optimizer.param_groups[1]["rounding_seed"] = 7
    with pytest.raises(RuntimeError, match="group 1 has rounding_seed"):
        step_compiled(optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("lost", ["foreach", "capturable", "differentiable", "fused", None])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("master_bits", 32),
        ("stochastic_rounding", True),
        ("state_dtype", torch.int8),
        ("master_bits", 16),
    ],
)
def test_options_beside_a_key_that_is_gone(lost, name, value):
    """Whose group then has as many keys as any other."""
    params, optimizer = make(fused_optim.AdamW)
    twins, asked = make(fused_optim.AdamW)
    group = optimizer.param_groups[1]
    group.pop(lost, None)
    group[name] = value
    if value == 16:
        with pytest.raises(RuntimeError, match="group 1: master_bits is not None, 32 or 24"):
            optimizer.step()
        assert not optimizer.state
        return
    setattr(asked, name, value)
    optimizer.step()
    asked.step()
    mine, theirs = optimizer.state[params[1]], asked.state[twins[1]]
    assert same_bits(params[1], twins[1]) and mine.keys() == theirs.keys()
    assert all(same_bits(mine[name], theirs[name]) for name in theirs)
    assert "remainder" not in optimizer.state[params[0]]


@pytest.mark.parametrize("bits", [32, 24])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_adagrads_sums_beside_masters(bits, dtype):
    """They exist since the constructor, in bfloat16 that has rounded what they begin with."""
    options = {"initial_accumulator_value": 0.1, "state_dtype": dtype}
    params, optimizer = make(fused_optim.Adagrad, **options)
    twins, asked = make(fused_optim.Adagrad, master_bits=bits, **options)
    for group in optimizer.param_groups:
        group["master_bits"] = bits
    for _ in range(2):
        optimizer.step()
        asked.step()
    for p, q in zip(params, twins, strict=True):
        mine, theirs = optimizer.state[p], asked.state[q]
        assert same_bits(p, q) and mine.keys() == theirs.keys()
        assert all(same_bits(mine[name], theirs[name]) for name in theirs)


def test_adagrads_sums_that_have_been_stepped_stay():
    """So do those of other values: they are what is there, not what a constructor made."""
    for change in (lambda state: state["step"].fill_(1), lambda state: state["sum"].fill_(0.25)):
        params, optimizer = make(fused_optim.Adagrad, initial_accumulator_value=0.1)
        state = optimizer.state[params[0]]
        change(state)
        before = state["sum"].float()
        optimizer.param_groups[0]["master_bits"] = 32
        optimizer.step()
        assert torch.equal(state["sum"], before + params[0].grad.float() ** 2)
