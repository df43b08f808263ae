"""Parameter groups: own options, added later, empty, changed by schedulers, in one launch."""

import inspect

import pytest
import torch
from torch.optim import lr_scheduler
from twins import (
    CASES,
    INFOS,
    TORCH,
    assert_same_state,
    assert_same_values,
    copies,
    make_params,
    set_grads,
)


def both(cls, make_groups, **options):
    params = make_params([(5,), (2, 3), (7,), ()], torch.float64)
    other = copies(params)
    return (
        params,
        other,
        cls(make_groups(params), **options),
        TORCH[cls](make_groups(other), foreach=False, **options),
    )


def run(params, other, ours, theirs, steps=5, between=lambda i: None):
    for i in range(steps):
        set_grads(params, other, seed=i)
        ours.step()
        theirs.step()
        between(i)
    assert ours.fallback_reason is None
    assert_same_values(params, other)
    assert_same_state(ours, theirs)


def test_each_group_its_own_options(optimizer_class):
    run(
        *both(
            optimizer_class,
            lambda p: [
                {"params": p[:2], "lr": 0.5, "weight_decay": 0.1},
                {"params": p[2:3], "maximize": True},
                {"params": p[3:]},
            ],
            lr=0.01,
        )
    )


def test_groups_with_different_flags_share_a_call(optimizer_class):
    """Groups that need different states: several launches, one result."""
    options = [o for c, o in CASES if c is optimizer_class][-4:]
    run(
        *both(
            optimizer_class,
            lambda p: [{"params": [q], **o} for q, o in zip(p, options, strict=False)],
        )
    )


def test_group_added_later_and_empty_group(optimizer_class):
    source = inspect.getsource(torch.optim.Adagrad._init_group)
    if optimizer_class.__name__ == "Adagrad" and "initial_accumulator_value" not in source:
        pytest.skip("this torch's Adagrad has no state for parameters that are added later")
    params, other, ours, theirs = both(
        optimizer_class, lambda p: [{"params": p[:2]}, {"params": []}]
    )

    def between(i):
        if i == 1:
            ours.add_param_group({"params": params[2:], "lr": 0.3})
            theirs.add_param_group({"params": other[2:], "lr": 0.3})

    run(params, other, ours, theirs, between=between)
    assert not torch.equal(params[2].detach(), make_params([(5,), (2, 3), (7,)], torch.float64)[2])


def test_lr_changed_between_steps_takes_effect_at_once(optimizer_class):
    params, other, ours, theirs = both(optimizer_class, lambda p: [{"params": p}])

    def between(i):
        for group in (*ours.param_groups, *theirs.param_groups):
            group["lr"] = 0.1 / (i + 1)

    run(params, other, ours, theirs, between=between)
    for group in (*ours.param_groups, *theirs.param_groups):
        group["lr"] = group["weight_decay"] = 0.0
    before = [p.detach().clone() for p in params]
    ours.step()
    theirs.step()
    assert_same_values(params, other)
    # Rprop's lr is but the first step's size, ASGD's takes effect on the next step.
    if optimizer_class.__name__ not in ("Rprop", "ASGD"):
        assert_same_values(params, before, rtol=0, atol=0)


def one_cycle(optimizer):
    """OneCycleLR, which also cycles momentum or beta1 where there is one."""
    has_momentum = {"momentum", "betas"} & set(optimizer.defaults)
    return lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=20, cycle_momentum=bool(has_momentum)
    )


@pytest.mark.parametrize("number", range(6))
def test_schedulers(optimizer_class, number):
    schedulers = list(INFOS[optimizer_class].scheduler_inputs)
    if number >= len(schedulers):
        schedulers.append([one_cycle])
    params, other, ours, theirs = both(optimizer_class, lambda p: [{"params": p}], lr=0.1)
    chosen = schedulers[min(number, len(schedulers) - 1)]
    pairs = [(make(ours), make(theirs)) for make in chosen]

    def between(_):
        for pair in pairs:
            for scheduler in pair:
                args = [1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
                scheduler.step(*args)

    run(params, other, ours, theirs, steps=12, between=between)
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


def test_mixed_dtypes_in_one_group(optimizer_class):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.complex64]
    options = {"eps": 1e-3} if "eps" in optimizer_class([torch.zeros(1)]).defaults else {}
    params = [make_params([(30,)], d)[0] for d in dtypes]
    together, alone = copies(params), copies(params)
    one = optimizer_class(together, **options)
    each = [optimizer_class([p], **options) for p in alone]
    for seed in range(4):
        set_grads(together, alone, seed=seed)
        one.step()
        for optimizer in each:
            optimizer.step()
    assert one.fallback_reason is None
    assert_same_values(together, alone, rtol=0, atol=0)


def test_many_tiny_tensors(optimizer_class):
    params = make_params([(i % 5,) for i in range(3000)], torch.float64)
    other = copies(params)
    run(params, other, optimizer_class(params), TORCH[optimizer_class](other, foreach=False), 2)
