"""Which values step options take, where they are said, and that copies keep them."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from step_recipes import ALL, recipes
from twins import assert_same_values, make_params, set_grads

import fused_optim
from fused_optim.optimizer import FUSED_CLASSES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("max_grad_norm", "a"),
        ("max_grad_norm", "1.0"),
        ("max_grad_norm", 1j),
        ("ema_decay", -0.1),
        ("ema_decay", 1.1),
        ("ema_decay", {}),
        ("ema_decay", math.nan),
        ("skip_nonfinite", 2),
        ("zero_grads", math.nan),
    ],
)
def test_bad_values(optimizer_class, name, value):
    with pytest.raises(ValueError, match=f"Invalid {name} value: {value}"):
        optimizer_class([torch.zeros(1)], **{name: value})
    optimizer = optimizer_class([torch.zeros(1)], **ALL)
    with pytest.raises(ValueError, match=f"Invalid {name} value: {value}"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == ALL[name]


def test_the_signature_is_torchs_and_then_our_own(optimizer_class):
    parent = next(torch_cls for torch_cls, cls in FUSED_CLASSES.items() if cls is optimizer_class)
    theirs = list(inspect.signature(parent).parameters.values())
    ours = list(inspect.signature(optimizer_class).parameters.values())
    assert ours[: len(theirs)] == theirs
    assert [p.name for p in ours[len(theirs) :]] == [
        *ALL,
        *("ema_dtype", "norm_group", "state_dtype"),
        *("master_bits", "stochastic_rounding", "rounding_seed"),
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
    with pytest.raises(TypeError):
        optimizer_class([torch.zeros(1)], no_such_argument=1)


def test_a_users_subclass(optimizer_class):
    class Mine(optimizer_class):
        def __init__(self, params):
            super().__init__(params, **ALL)

    optimizer = Mine(make_params([(3,)]))
    assert {name: getattr(optimizer, name) for name in ALL} == ALL


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_keep_them(optimizer_class, how):
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(3,)])
    params[0].grad = torch.full((3,), math.inf, dtype=torch.float64)
    ours.step()
    copied = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    assert {name: getattr(copied, name) for name in ALL} == ALL
    assert copied.skipped_steps.item() == 1 and copied.grad_norm.item() == math.inf
    (p,) = copied.param_groups[0]["params"]
    p.grad = torch.full((3,), math.inf, dtype=torch.float64)
    copied.step()
    assert copied.skipped_steps.item() == 2 and ours.skipped_steps.item() == 1


def test_they_may_change_between_steps(optimizer_class):
    params, others, ours, theirs = recipes(optimizer_class, {}, {})
    for i, norm in enumerate([None, 0.5, 0.1, None, math.inf]):
        ours.max_grad_norm = theirs.max_grad_norm = norm
        ours.zero_grads = theirs.zero_grads = i % 2 == 1
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
        assert (not params[0].grad.any()) == (i % 2 == 1)
        assert_same_values(params, others)


def test_fuse_and_then_ask():
    params = make_params([(3,)])
    optimizer = fused_optim.fuse(torch.optim.Adam(params))
    assert {name: getattr(optimizer, name) for name in ALL} == dict.fromkeys(ALL) | {
        "skip_nonfinite": False, "zero_grads": False
    }  # fmt: skip
    optimizer.max_grad_norm = 0.5
    set_grads(params, seed=0)
    optimizer.step()
    assert optimizer.grad_norm.item() > 0
