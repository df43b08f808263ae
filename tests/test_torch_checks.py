"""torch's own step, too, changes nothing where it would fail: what it would trip over half way is
found before it starts."""

import copy

import pytest
import torch
from torch.nn import Parameter
from twins import CASES, TORCH, assert_unchanged, case_id, set_grads, snapshot

import fused_optim
import fused_optim._C as _C


def on_torchs_path(cls, options, dtype=torch.float32):
    """Two groups of parameters that are not dense, stepped once."""
    params = [Parameter(torch.ones(4, 6, dtype=dtype)[:, i : i + 3]) for i in range(3)]
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **options)
    set_grads(params, seed=0)
    optimizer.step()
    set_grads(params, seed=1)
    return optimizer, params


def states_like_param(optimizer, param):
    scalars = {name for name, _, is_scalar in _C.states(optimizer._rule) if is_scalar}
    return [name for name in optimizer.state[param] if name not in scalars]


WRONG = {
    "has shape": lambda t: torch.zeros(4, 2, dtype=t.dtype),
    "is on": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("what", [*WRONG, "is missing"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_bad_state_of_the_last_parameter(case, what):
    optimizer, params = on_torchs_path(*case)
    for name in states_like_param(optimizer, params[2]):
        state = optimizer.state[params[2]]
        right = state[name]
        if what == "is missing":
            if "step" not in state:
                continue  # SGD: torch makes a new buffer
            del state[name]
        else:
            state[name] = WRONG[what](right)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=f"group 1, parameter 0: '{name}' {what}"):
            optimizer.step()
        assert_unchanged(optimizer, before)
        state[name] = right
    optimizer.step()


class Named(torch.Tensor):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("which", ["param", "grad", "exp_avg", "step"])
@pytest.mark.parametrize("is_subclass", [False, True])
def test_memory_that_is_gone(which, is_subclass):
    """As where a wrapper has freed it: torch's step would read and write beyond it."""
    optimizer, params = on_torchs_path(fused_optim.AdamW, {})
    if is_subclass:
        state = optimizer.state[params[2]]
        state.update({name: value.as_subclass(Named) for name, value in state.items()})
    tensor = {"param": params[2], "grad": params[2].grad, **optimizer.state[params[2]]}[which]
    tensor.untyped_storage().resize_(0)
    before = [p.detach().clone() for p in params[:2]]
    with pytest.raises(RuntimeError, match=f"group 1, parameter 0: '{which}' reaches beyond"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=False))


@pytest.mark.parametrize("which", ["param", "exp_avg", "exp_avg_sq", "ema"])
@pytest.mark.parametrize("kind", [torch.Tensor, Named])
def test_elements_that_are_one_place_in_memory(which, kind):
    """Also of a subclass: torch refuses to write them, once it has stepped what comes before."""
    optimizer, params = on_torchs_path(fused_optim.AdamW, {"ema_decay": 0.5})
    state = optimizer.state[params[2]]
    expanded = torch.ones(4, 1).expand(4, 3).as_subclass(kind)
    if which == "param":
        expanded.grad = params[2].grad
        optimizer.state[expanded] = optimizer.state.pop(params[2])
        optimizer.param_groups[1]["params"] = [expanded]
    else:
        state[which] = expanded
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"group 1, parameter 0: '{which}' is expanded"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("kind", [torch.Tensor, Named])
def test_expanded_tensors_without_elements(kind):
    """torch writes none of them."""
    p = Parameter(torch.ones(1, 0).expand(5, 0).as_subclass(kind))
    p.grad = torch.ones(5, 0)
    fused_optim.SGD([p], lr=0.1, foreach=True).step()


def test_scalars_that_are_none():
    """A number where torch wants a tensor, and a count that it divides by when it is zero."""
    minus_1 = torch.tensor(-1.0)
    for bad in (1, minus_1, torch._neg_view(-minus_1), torch.tensor(float("nan"))):
        optimizer, params = on_torchs_path(fused_optim.AdamW, {})
        optimizer.state[params[2]]["step"] = bad
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="group 1, parameter 0: "):
            optimizer.step()
        assert_unchanged(optimizer, before)


def test_a_state_without_its_step():
    """But SGD has none, whatever else is in the state."""
    optimizer, params = on_torchs_path(fused_optim.AdamW, {})
    del optimizer.state[params[2]]["step"]
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 1, parameter 0: 'step' is missing"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    optimizer, params = on_torchs_path(fused_optim.SGD, {"lr": 0.1, "momentum": 0.9})
    optimizer.state[params[2]] = {"momentum_buffer": None, "step": torch.tensor(1.0)}
    optimizer.step()


def test_averages_in_other_layouts():
    optimizer, params = on_torchs_path(fused_optim.SGD, {"lr": 0.1, "ema_decay": 0.9})
    optimizer.state[params[2]]["ema"] = optimizer.state[params[2]]["ema"].to_sparse()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="group 1, parameter 0: 'ema' has layout"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_states_of_another_dtype_get_torchs_answer(case, dtype):
    """All of it or nothing: either as torch's step takes them, or its error before it starts."""
    cls, options = case
    optimizer, params = on_torchs_path(cls, options)
    names = states_like_param(optimizer, params[2])
    for name in names:
        ours, others = on_torchs_path(cls, options)
        theirs = TORCH[cls](
            [{"params": [Parameter(p.detach().clone()) for p in others[:2]]},
             {"params": [Parameter(p.detach().clone()) for p in others[2:]]}],
            **options, foreach=False,
        )  # fmt: skip
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        copied = [p for group in theirs.param_groups for p in group["params"]]
        for p, q in zip(others, copied, strict=True):
            q.grad = p.grad.clone()
        for o, ps in ((ours, others), (theirs, copied)):
            o.state[ps[2]][name] = o.state[ps[2]][name].to(dtype)
        before = snapshot(ours)
        try:
            theirs.step()
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match="group 1, parameter 0: ") as ours_error:
                ours.step()
            assert str(error) in str(ours_error.value)
            assert_unchanged(ours, before)
        else:
            ours.step()
            for p, q in zip(others, copied, strict=True):
                torch.testing.assert_close(p.detach(), q.detach())


@pytest.mark.parametrize(
    "name, wrong, what",
    [
        ("exp_avg", 0.5, "is no tensor but float"),
        ("exp_avg", [0.0], "is no tensor but list"),
        ("exp_avg", torch.zeros(1).expand(4, 3), "is expanded"),
        ("step", torch.ones(2), r"has shape \[2\], not one element"),
        ("step", torch.ones(0), r"has shape \[0\], not one element"),
        ("step", torch.ones((), device="meta"), "is on meta"),
    ],
    ids=str,
)
def test_mangled_state_of_the_last_parameter(name, wrong, what):
    optimizer, params = on_torchs_path(fused_optim.Adam, {})
    optimizer.state[params[2]][name] = wrong
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"group 1, parameter 0: '{name}' {what}"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("grad", [torch.ones(7), torch.ones(4, 3, device="meta")], ids=str)
def test_gradients_that_do_not_fit(optimizer_class, grad):
    optimizer, params = on_torchs_path(optimizer_class, {})
    _C.set_grads([params[2]], [grad])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 1, parameter 0: 'grad' (has shape|is on)"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_gradients_that_torch_broadcasts():
    optimizer, params = on_torchs_path(fused_optim.SGD, {"lr": 0.5})
    _C.set_grads([params[2]], [torch.ones(3)])
    before = params[2].detach().clone()
    optimizer.step()
    assert torch.equal(params[2].detach(), before - 0.5)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_value_of_the_last_group_that_is_no_number(case):
    optimizer, _ = on_torchs_path(*case)
    group = optimizer.param_groups[1]
    for name, default in optimizer.defaults.items():
        if default is None or isinstance(default, bool):
            continue
        good, before = group[name], snapshot(optimizer)
        for bad in ("none", None, ("a", "b"), (0.5,)):
            group[name] = bad
            if raises(optimizer):
                assert_unchanged(optimizer, before)
            group[name], before = good, snapshot(optimizer)


def raises(optimizer):
    """Some values a rule does not look at, as momentum's dampening without momentum."""
    try:
        optimizer.step()
    except Exception:
        return True
    return False


def test_capturable_where_it_is_not_supported():
    params = [Parameter(torch.ones(4, 6)[:, 1:4])]
    optimizer = fused_optim.Adam(params, capturable=True)
    set_grads(params, seed=0)
    with pytest.raises(AssertionError, match="capturable"):
        optimizer.step()
    assert not optimizer.state[params[0]]


def test_no_rehearsal_with_a_users_code():
    class Counting(fused_optim.Adam):
        def _init_group(self, group, *lists):
            self.calls = getattr(self, "calls", 0) + 1
            return super()._init_group(group, *lists)

    params = [Parameter(torch.ones(4))]
    optimizer = Counting(params)
    for seed in range(2):
        set_grads(params, seed=seed)
        optimizer.step()
        optimizer.state[params[0]]["mine"] = torch.zeros(2, dtype=torch.float64)
    assert optimizer.calls == 2


def test_a_users_own_state_is_left_alone(optimizer_class):
    optimizer, params = on_torchs_path(optimizer_class, {})
    for p in params:
        optimizer.state[p]["mine"] = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert all(torch.equal(optimizer.state[p]["mine"], torch.zeros(2).double()) for p in params)


def test_gradients_of_another_dtype():
    """torch's AdamW fails on them, and would have stepped what comes before."""
    optimizer, params = on_torchs_path(fused_optim.AdamW, {})
    _C.set_grads([params[2]], [params[2].grad.double()])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 1, parameter 0: .*dtype"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_sparse_gradients_of_the_last_group(optimizer_class):
    dense = [Parameter(torch.ones(4, 3)) for _ in range(2)]
    optimizer = optimizer_class([{"params": dense}, {"params": [Parameter(torch.ones(4, 3))]}])
    params = [p for group in optimizer.param_groups for p in group["params"]]
    set_grads(params, seed=0)
    sparse = torch.zeros(4, 3)
    sparse[1] = 1.0
    params[2].grad = sparse.to_sparse(1)
    before = snapshot(optimizer)
    if optimizer_class.__name__ in ("SGD", "Adagrad"):
        optimizer.step()
        assert "sparse" in optimizer.fallback_reason
        return
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_unchanged(optimizer, before)
