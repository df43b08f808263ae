"""zero_grads: gradients are zero after a step, in their own memory and whatever their layout."""

import pytest
import torch
from step_recipes import ALL, assert_same_averages, recipes
from twins import assert_same_values, assert_unchanged, set_grads, snapshot


def test_zeroing_keeps_the_memory_and_bumps_the_version(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"zero_grads": True})
    for _ in range(2):
        set_grads(params, seed=0)
        grads = [p.grad for p in params]
        pointers, versions = ([f(g) for g in grads] for f in (torch.Tensor.data_ptr, version))
        ours.step()
        assert all(p.grad is g and not g.any() for p, g in zip(params, grads, strict=True))
        assert [g.data_ptr() for g in grads] == pointers
        assert all(version(g) > v for g, v in zip(grads, versions, strict=True))


def version(tensor):
    return tensor._version


@pytest.mark.parametrize("asked", [ALL, {"zero_grads": True}], ids=["all", "zero_grads"])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "reversed dims", "offset"])
def test_gradients_in_any_layout(optimizer_class, layout, asked):
    params, others, ours, theirs = recipes(
        optimizer_class, {}, asked, shapes=[(40, 30), (7, 20, 5)]
    )
    for i in range(3):
        set_grads(params, others, seed=i)
        around = []
        for p in params:
            shape = tuple(p.shape)
            if layout == "transposed":
                whole = torch.full(shape[::-1], 7.0, dtype=p.dtype)
                view = whole.permute(*reversed(range(p.dim())))
            elif layout == "sliced":
                whole = torch.full((*shape, 3), 7.0, dtype=p.dtype)
                view = whole[..., 1]
            elif layout == "reversed dims":
                whole = torch.full((shape[-1], *shape[:-1]), 7.0, dtype=p.dtype)
                view = whole.movedim(0, -1)
            else:
                whole = torch.full((p.numel() + 3,), 7.0, dtype=p.dtype)
                view = whole[1:-2].view(shape)
            around.append((whole, whole.numel() - p.numel()))
            p.grad = view.copy_(p.grad)
        ours.step()
        theirs.step()
        assert not any(p.grad.any() for p in params)
        assert all((whole == 7).sum() == rest for whole, rest in around)
        assert_same_values(params, others)
        if "ema_decay" in asked:
            assert_same_averages(ours, theirs)
    assert ours.fallback_reason is None


def test_an_expanded_gradient_cannot_be_zeroed(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"zero_grads": True}, shapes=[(3,), (4,)])
    set_grads(params, seed=0)
    params[1].grad = torch.ones(1, dtype=torch.float64).expand(4)
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'grad' has elements that share"):
        ours.step()
    assert_unchanged(ours, before)
    assert params[0].grad.any()


def test_two_parameters_with_one_gradient(optimizer_class):
    """One must not be zeroed before the other is stepped."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(3,), (3,)])
    grad = torch.randn(3, dtype=torch.float64)
    for p in (*params, *others):
        p.grad = grad.clone()
    params[1].grad = params[0].grad
    ours.step()
    theirs.step()
    assert_same_values(params, others)
    assert not params[0].grad.any()


def test_gradients_with_a_graph(optimizer_class):
    """Of backward(create_graph=True): detached and zeroed, as zero_grad does."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(3,)])
    for p in (*params, *others):
        (p**3).sum().backward(create_graph=True)
    ours.step()
    torch.nn.utils.clip_grad_norm_(others, 0.5)
    theirs.optimizer.step()
    theirs.optimizer.zero_grad(set_to_none=False)
    assert_same_values(params, others)
    assert not params[0].grad.requires_grad and not params[0].grad.any()
