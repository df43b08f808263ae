"""ema_decay: averages as AveragedModel has them, also where checkpoints bring or lack them."""

import copy

import pytest
import torch
from step_recipes import (
    ALL,
    CASES_AND_PATHS,
    PATHS,
    assert_same_averages,
    case_and_path_id,
    recipes,
)
from twins import (
    TORCH,
    assert_same_values,
    assert_unchanged,
    copies,
    same_bits,
    set_grads,
    snapshot,
)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_decays_from_0_to_1(optimizer_class, decay):
    params, others, ours, theirs = recipes(optimizer_class, {}, {"ema_decay": decay})
    for i in range(4):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
    assert_same_averages(ours, theirs)


def test_averages_and_states_in_any_layout(optimizer_class):
    """As checkpoints of another memory format bring them."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(40, 30)])
    for i in range(3):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
        state = ours.state[params[0]]
        state["ema"] = state["ema"].t().contiguous().t()
    assert ours.fallback_reason is None
    assert_same_values(params, others)
    assert_same_averages(ours, theirs)


@pytest.mark.parametrize("path", PATHS)
def test_parameters_that_join_rest_and_return(optimizer_class, path):
    """AveragedModel averages all parameters at each step, stepped or not."""
    params, others, ours, theirs = recipes(
        optimizer_class, {}, {"ema_decay": 0.75}, path, [(3,), (4,), (5,)]
    )
    absent = [[1, 2], [2], [0, 2], [0], [], [1]]
    for i, indices in enumerate(absent):
        set_grads(params, others, seed=i)
        for index in indices:
            params[index].grad = others[index].grad = None
        ours.step()
        theirs.step()
        assert_same_values(params, others)
        assert_same_averages(ours, theirs)


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_checkpoints_are_torchs(case, path):
    """With averages in the state, torch goes on as before; without them ours begins them anew."""
    cls, options = case
    params, others, ours, _ = recipes(cls, options, ALL, path, [(4, 3), (5,)])
    plain = TORCH[cls](others, foreach=path == "foreach", **options)
    for i in range(3):
        set_grads(params, seed=i)
        ours.step()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    saved = copy.deepcopy(ours.state_dict())
    assert all(set(group) == set(g) for group, g in zip(
        saved["param_groups"], cls(copies(others), **options).state_dict()["param_groups"],
        strict=True,
    ))  # fmt: skip
    plain.load_state_dict(saved)
    again = copies(others)
    resumed = cls(again, **options, **ALL, **({"foreach": True} if path == "foreach" else {}))
    resumed.load_state_dict(copy.deepcopy(saved))
    for i in range(3, 6):
        set_grads(params, others, again, seed=i)
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        for optimizer in (ours, plain, resumed):
            optimizer.step()
        # torch gives the scalars of a loaded NAdam another dtype.
        assert_same_values(params, others, rtol=1e-6, atol=1e-6)
        assert_same_values(params, again)
    for p, q in zip(params, again, strict=True):
        torch.testing.assert_close(
            ours.state[p]["ema"], resumed.state[q]["ema"], rtol=1e-12, atol=1e-12
        )
    # And from torch: averages begin as the parameters are after the first step.
    third = copies(others)
    from_torch = cls(third, **options, ema_decay=0.5)
    state = plain.state_dict()
    for entry in state["state"].values():
        entry.pop("ema", None)
    from_torch.load_state_dict(copy.deepcopy(state))
    set_grads(third, seed=9)
    from_torch.step()
    assert all(same_bits(from_torch.state[p]["ema"], p.detach()) for p in third)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(5), "has shape"),
        (lambda: torch.zeros(4, dtype=torch.float64), "has dtype"),
        (lambda: torch.zeros(4, device="meta"), "is on meta"),
        (lambda: "text", "is no tensor"),
    ],
    ids=["shape", "dtype", "meta", "text"],
)
@pytest.mark.parametrize("has_grad", [True, False])
def test_a_corrupt_average(optimizer_class, make, message, has_grad):
    wrong = make()
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(3,), (4,)], dtype=torch.float32)
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[1]]["ema"] = wrong
    set_grads(params, seed=1)
    if not has_grad:
        params[1].grad = None
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match=f"group 0, parameter 1: 'ema' {message}"):
        ours.step()
    assert_unchanged(ours, before)
    if isinstance(wrong, torch.Tensor) and not wrong.is_meta:
        with (
            pytest.raises(RuntimeError, match=f"group 0, parameter 1: 'ema' {message}"),
            ours.ema_parameters(),
        ):
            pass
        assert_unchanged(ours, before)


def test_averages_that_lie_beyond_their_storage(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(100,)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[0]]["ema"].untyped_storage().resize_(80)
    set_grads(params, seed=1)
    with pytest.raises(RuntimeError, match="'ema' reaches beyond its storage"):
        ours.step()


def test_an_average_that_is_its_parameter(optimizer_class):
    """Overlapping memory goes through torch's operations."""
    params, _, ours, _ = recipes(optimizer_class, {}, {"ema_decay": 0.5}, shapes=[(4,)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[0]]["ema"] = params[0].detach()
    ours.step()
    assert "overlap" in ours.fallback_reason


@pytest.mark.parametrize("fails", [False, True])
def test_ema_parameters(optimizer_class, fails):
    params, _, ours, theirs = recipes(optimizer_class, {}, {"ema_decay": 0.5})
    for i in range(3):
        set_grads(params, theirs.params, seed=i)
        ours.step()
        theirs.step()
    before = snapshot(ours)
    pointers = [p.data_ptr() for p in params]
    try:
        with ours.ema_parameters():
            assert_same_values(params, theirs.averages)
            assert [p.data_ptr() for p in params] == pointers
            if fails:
                raise KeyError("evaluation failed")
    except KeyError:
        assert fails
    assert_unchanged(ours, before)


def test_ema_parameters_refuses(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"ema_decay": 0.5})
    set_grads(params, seed=0)
    before = snapshot(ours)
    with ours.ema_parameters():  # nothing has been stepped
        assert_unchanged(ours, before)
    ours.step()
    before = snapshot(ours)
    with ours.ema_parameters():
        with pytest.raises(RuntimeError, match="inside ema_parameters"):
            ours.step()
        with pytest.raises(RuntimeError, match="inside ema_parameters"), ours.ema_parameters():
            pass
    assert_unchanged(ours, before)
    plain = optimizer_class(params)
    with pytest.raises(RuntimeError, match="ema_decay"), plain.ema_parameters():
        pass
