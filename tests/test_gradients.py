"""Gradients that are None, zero, late, sparse, frozen or shared; gradients are only read."""

import pytest
import torch
from twins import (
    CASES,
    TORCH,
    Twins,
    assert_same_state,
    assert_same_values,
    assert_unchanged,
    case_id,
    copies,
    make_params,
    randn,
    set_grads,
    snapshot,
)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_gradient_no_update_no_state(case):
    cls, options = case
    params = make_params([(3,), (2, 2)])
    optimizer = cls(params, **options)
    before = snapshot(optimizer)
    optimizer.step()
    assert_unchanged(optimizer, before)
    # Adagrad's is there from construction on, as in torch.
    assert len(optimizer.state) == len(TORCH[cls](copies(params), **options).state)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_one_step_with_all_gradients_none(case):
    twins = Twins(*case, dtype=torch.float64)
    twins.step(2)
    for params in twins.lists:
        for p in params:
            p.grad = None
    before = snapshot(twins.ours)
    twins.ours.step()
    assert_unchanged(twins.ours, before)
    twins.theirs.step()
    twins.step(2)
    twins.assert_close()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_zero_gradient_without_decay_leaves_the_parameter(case):
    cls, options = case
    params = make_params([(9,)])
    optimizer = cls(params, **{k: v for k, v in options.items() if k != "weight_decay"})
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
        group.update({k: 0 for k in group if k == "lambd"})  # ASGD's other decay
    before = params[0].detach().clone()
    params[0].grad = torch.zeros(9)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(params[0].detach(), before)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_frozen_then_unfrozen_and_first_gradient_late(case):
    """Each parameter counts its own steps: bias corrections differ within one launch."""
    twins = Twins(*case, dtype=torch.float64)
    for i in range(9):
        set_grads(*twins.lists, seed=i)
        for params in twins.lists:
            if i < 3:
                params[1].grad = None
            if 4 <= i < 7:
                params[0].grad = None
        twins.ours.step()
        twins.theirs.step()
        twins.assert_close()
    twins.assert_fused()


def test_requires_grad_false_is_accepted(optimizer_class):
    params = make_params([(4,), (5,)])
    params[1].requires_grad_(False)
    other = copies(params)
    ours, theirs = optimizer_class(params), TORCH[optimizer_class](other, foreach=False)
    set_grads(params, other, seed=0)
    ours.step()
    theirs.step()
    assert_same_values(params, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_gradients_are_only_read(case):
    cls, options = case
    params = make_params([(8,), (3, 3)])
    optimizer = cls(params, **options)
    optimizer.grad_scale = torch.tensor(4.0)
    set_grads(params, seed=0)
    before = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
    optimizer.step()
    for p, (grad, values, version) in zip(params, before, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, values)
        assert grad._version == version


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_versions_of_what_is_written_move(case):
    cls, options = case
    params = make_params([(8,)])
    optimizer = cls(params, **options)
    set_grads(params, seed=0)
    optimizer.step()
    state = {k: v._version for k, v in optimizer.state[params[0]].items()}
    version = params[0]._version
    optimizer.step()
    assert params[0]._version > version
    assert all(optimizer.state[params[0]][k]._version > v for k, v in state.items())


def test_autograd_notices_a_step_between_forward_and_backward(optimizer_class):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    loss = (param**2).sum()
    optimizer_class([param]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def sparse_grad(size=(10, 3)):
    indices = torch.tensor([[1, 4, 4]])  # uncoalesced: row 4 twice
    return torch.sparse_coo_tensor(indices, torch.ones(3, size[1]), size)


def test_sparse_gradients_as_in_torch(optimizer_class):
    def outcome(cls):
        param = make_params([(10, 3)])[0]
        dense = make_params([(5,)])[0]
        optimizer = cls([param, dense])
        try:
            for _ in range(2):
                param.grad, dense.grad = sparse_grad(), torch.ones(5)
                optimizer.step()
        except RuntimeError as error:
            return str(error)
        return [param.detach(), dense.detach()]

    ours, theirs = outcome(optimizer_class), outcome(TORCH[optimizer_class])
    assert type(ours) is type(theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        assert_same_values(ours, theirs, rtol=0, atol=0)


def test_expanded_and_shared_gradients(optimizer_class):
    """A gradient of stride 0, and one tensor as the gradient of two parameters."""
    params = make_params([(4, 6), (4, 6)], torch.float64)
    other = copies(params)
    ours, theirs = optimizer_class(params), TORCH[optimizer_class](other, foreach=False)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        grad = randn((4, 1), torch.float64, generator).expand(4, 6)
        for p in (*params, *other):
            p.grad = grad
        ours.step()
        theirs.step()
    assert ours.fallback_reason is None
    assert_same_values(params, other)
    assert_same_state(ours, theirs)


def test_lazily_conjugated_gradient(optimizer_class):
    param = make_params([(5,)], torch.complex128)[0]
    twin = copies([param])[0]
    grad = make_params([(5,)], torch.complex128, seed=1)[0].detach()
    param.grad, twin.grad = grad.conj(), grad.conj().resolve_conj()
    assert param.grad.is_conj()
    try:
        optimizer_class([param]).step()
    except RuntimeError as error:  # torch's own answer, then, and nothing of ours
        assert "conj" in str(error)
        return
    TORCH[optimizer_class]([twin], foreach=False).step()
    assert_same_values([param], [twin])


def test_differentiable_passes_gradcheck(optimizer_class):
    options = {"differentiable": True, "lr": 0.5}

    def stepped(param, grad):
        leaf = param.clone()
        leaf.grad = grad
        optimizer_class([leaf], **options).step()
        return leaf

    param = torch.rand(5, dtype=torch.float64, requires_grad=True)
    grad = (torch.rand(5, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(stepped, (param, grad))
