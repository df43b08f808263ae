"""Clipping, skipping, zeroing and averaging together in step(): what torch's calls around it do."""

import itertools
import math

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
    SUPPORTED_ISAS,
    assert_same_values,
    assert_unchanged,
    grad_scaler,
    make_params,
    not_on_cuda,
    same_bits,
    set_grads,
    snapshot,
)

import fused_optim
import fused_optim._C as _C

SUBSETS = [dict(chosen) for n in range(1, 5) for chosen in itertools.combinations(ALL.items(), n)]


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_all_four_over_20_steps_with_planted_infs(case, path):
    params, others, ours, theirs = recipes(*case, ALL, path)
    for i in range(20):
        set_grads(params, others, seed=i)
        if i in (0, 5, 6, 13):  # the very first step is skipped, and two in a row
            value = math.nan if i == 5 else math.inf
            for p in (params[1], others[1]):
                p.grad[i] = value
        ours.step()
        theirs.step()
        assert not any(p.grad.any() for p in params)
        norm = theirs.grad_norm
        torch.testing.assert_close(
            ours.grad_norm.to(norm), norm, rtol=1e-12, atol=0, equal_nan=True
        )
        assert_same_values(params, others)
        if i > 0:
            assert_same_averages(ours, theirs)
    assert (ours.fallback_reason is None) == (path == "kernels")
    assert ours.skipped_steps.item() == theirs.skipped_steps == 4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("asked", SUBSETS, ids=lambda o: "+".join(o))
def test_each_combination(optimizer_class, asked, path):
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, path)
    for i in range(4):
        set_grads(params, others, seed=i)
        grads = [p.grad.clone() for p in params]
        ours.step()
        theirs.step()
        for p, grad in zip(params, grads, strict=True):
            assert same_bits(p.grad, torch.zeros_like(grad) if "zero_grads" in asked else grad)
        assert_same_values(params, others)
        if "ema_decay" in asked:
            assert_same_averages(ours, theirs)
    assert all(("ema" in s) == ("ema_decay" in asked) for s in ours.state.values())
    assert (ours.grad_norm is None) == ("max_grad_norm" not in asked)


@pytest.mark.parametrize("path", PATHS)
def test_with_grad_scaler(optimizer_class, path):
    """The norm is that of the unscaled gradients; a step that overflows is skipped and zeroed."""
    asked = {**ALL, "skip_nonfinite": False}
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, path, [(6, 4)])
    scalers = [grad_scaler(init_scale=64.0, growth_interval=4) for _ in range(2)]
    for i in range(12):
        factor = torch.randn(6, 4, dtype=torch.float64)
        if i in (0, 7):
            factor[2, 3] = math.inf
        scalers[0].scale((params[0] * factor).sum()).backward()
        scalers[0].step(ours)
        scalers[0].update()
        scalers[1].scale((others[0] * factor).sum()).backward()
        scalers[1].unscale_(theirs.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(others, asked["max_grad_norm"])
        before = scalers[1].get_scale()
        scalers[1].step(theirs.optimizer)
        scalers[1].update()
        if scalers[1].get_scale() >= before:
            theirs.averaged.update_parameters(torch.nn.ParameterList(others))
            torch.testing.assert_close(ours.grad_norm.to(norm), norm, rtol=1e-12, atol=0)
        assert not ours.grad_norm.isfinite() or norm.isfinite()
        theirs.optimizer.zero_grad()
        assert not params[0].grad.any()
        assert_same_values(params, others)
        if i > 0:
            assert_same_averages(ours, theirs)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert ours.skipped_steps.item() == 0  # nobody asked to count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes(optimizer_class, dtype):
    """Close to torch's calls in the same dtype: two roundings more or less."""
    asked = {**ALL, "max_grad_norm": 100.0}
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, dtype=dtype)
    for i in range(3):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
    eps = torch.finfo(dtype).eps
    # A sign near zero decides a whole step of Rprop and Lion; the other rules are smooth.
    if optimizer_class not in (fused_optim.Rprop, fused_optim.Lion):
        assert_same_values(params, others, rtol=32 * eps, atol=32 * eps)
        assert_same_averages(ours, theirs, rtol=32 * eps, atol=32 * eps)
    assert ours.fallback_reason is None
    assert all(s["ema"].dtype == dtype for s in ours.state.values())


def test_sparse_gradients():
    for name in ("SGD", "Adagrad"):
        cls = getattr(fused_optim, name)
        params, others, ours, theirs = recipes(cls, {"lr": 0.1}, ALL, shapes=[(6, 2), (3,)])
        theirs.max_grad_norm = None
        for i in range(4):
            set_grads(params, others, seed=i)
            indices = torch.tensor([[0, 3, 3]])
            values = torch.full((3, 2), math.inf if i == 2 else 1.0 + i, dtype=torch.float64)
            sparse = torch.sparse_coo_tensor(indices, values, (6, 2)).coalesce()
            norm = torch.cat([sparse.values().flatten(), params[1].grad]).norm()
            for p in (params[0], others[0]):
                p.grad = sparse.clone()
            coefficient = min(1.0, 0.5 / (norm.item() + 1e-6))
            for p in others:
                if i != 2:
                    p.grad = p.grad * coefficient
            theirs.optimizer.zero_grad, zero = (lambda **_: None), theirs.optimizer.zero_grad
            if i != 2:
                theirs.optimizer.step()
                theirs.averaged.update_parameters(torch.nn.ParameterList(others))
            theirs.optimizer.zero_grad = zero
            ours.step()
            torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-14, atol=0)
            assert not any(p.grad.to_dense().any() for p in params)
            assert_same_values(params, others)
            assert_same_averages(ours, theirs)
        assert "sparse" in ours.fallback_reason
        assert ours.skipped_steps.item() == 1


@not_on_cuda("a CPU mesh")
def test_distributed_tensors():
    """Of which torch's own step takes care, and its functions of what surrounds it."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        params, others, _, theirs = recipes(fused_optim.AdamW, {}, ALL, shapes=[(8, 4), (5,)])
        params = [
            torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params
        ]
        ours = fused_optim.AdamW(params, **ALL)
        for i in range(4):
            set_grads(others, seed=i)
            if i == 2:
                others[0].grad[0] = math.inf
            for p, q in zip(params, others, strict=True):
                p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
            ours.step()
            theirs.step()
            assert_same_values([p.full_tensor() for p in params], others)
            assert not any(p.grad.full_tensor().any() for p in params)
        with ours.ema_parameters():
            assert_same_values([p.full_tensor() for p in params], theirs.averages)
        assert ours.skipped_steps.item() == 1
    finally:
        dist.destroy_process_group()


def test_steps_without_gradients(optimizer_class):
    _, _, ours, _ = recipes(optimizer_class, {}, ALL)
    before = snapshot(ours)
    ours.step()
    assert_unchanged(ours, before)
    assert ours.grad_norm.item() == 0 and ours.skipped_steps.item() == 0


@not_on_cuda("the host's kernels")
def test_one_result_on_every_instruction_set_and_thread_count(optimizer_class):
    results = []
    for isa, threads in itertools.product(SUPPORTED_ISAS, (1, 2, 5)):
        _C.set_isa(isa)
        torch.set_num_threads(threads)
        params = make_params([(100_003,), (64, 33), (3,)])
        optimizer = optimizer_class(params, **ALL)
        for i in range(2):
            set_grads(params, seed=i)
            optimizer.step()
        averages = [optimizer.state[p]["ema"] for p in params]
        results.append([p.detach() for p in params] + averages + [optimizer.grad_norm])
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_compiled_step_has_them():
    params, others, ours, theirs = recipes(fused_optim.AdamW, {}, ALL, shapes=[(3,)])
    step = torch.compile(ours.step, backend="eager")
    for i in range(2):
        set_grads(params, others, seed=i)
        step()
        theirs.step()
    assert ours.fallback_reason is None
    assert_same_values(params, others)
    assert_same_averages(ours, theirs)
