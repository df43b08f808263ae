"""Norms and clipping of CUDA gradients: the CPU's bits, no waiting, in graphs, over devices."""

import math

import pytest
import torch
from cuda_twins import same_numbers
from test_clip_grad import DTYPES, NORMS, clones, grads_of, params_with_grads

import fused_optim
import fused_optim._C as _C


def on_device(params, devices=("cuda",)):
    return [p.grad.to(devices[i % len(devices)]) for i, p in enumerate(params)]


def clip(grads, norm_type, max_norm):
    norm = _C.grad_norm(grads, norm_type)
    _C.clip_grads(grads, norm, max_norm)
    return norm


@pytest.mark.parametrize("max_norm", [1.0, 1e9])
@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_bitwise_the_cpus(dtype, norm_type, max_norm):
    params = params_with_grads(dtype=dtype)
    others = grads_of(clones(params))
    grads = on_device(params)
    ours, expected = clip(grads, norm_type, max_norm), clip(others, norm_type, max_norm)
    assert ours.is_cuda and ours.dtype == torch.float64 and ours.shape == ()
    assert ours.item() == expected.item()
    assert all(same_numbers(a, b) for a, b in zip(grads, others, strict=True))


def test_more_gradients_than_one_launch_takes():
    params = [params_with_grads([1 + i % 5], DTYPES[i % 4], seed=i)[0] for i in range(8000)]
    others = grads_of(clones(params))
    grads = on_device(params)
    assert clip(grads, 2.0, 1.0).item() == clip(others, 2.0, 1.0).item()
    assert all(same_numbers(a, b) for a, b in zip(grads, others, strict=True))


def test_no_synchronisation(synchronizations):
    grads = on_device(params_with_grads())
    with synchronizations() as count:
        clip(grads, 2.0, 1.0)
        clip(grads, math.inf, 1e9)
    assert count() == 0


@pytest.mark.torch_kernels
def test_the_public_function_does_not_wait(synchronizations):
    params = params_with_grads()
    for p in params:
        grad = p.grad.cuda()
        p.data = p.data.cuda()
        p.grad = grad
    with synchronizations() as count:
        norm = fused_optim.clip_grad_norm_(params, 1.0)
    assert count() == 0
    assert norm.is_cuda and norm.dtype == torch.float32


def test_in_a_graph():
    """Each replay takes the gradients as they are then."""
    grads = on_device(params_with_grads())
    norm = clip(grads, 2.0, 1e9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = clip(grads, 2.0, 1.0)
    for seed in (1, 2):
        params = params_with_grads(seed=seed)
        for grad, p in zip(grads, params, strict=True):
            grad.copy_(p.grad)
        graph.replay()
        expected = grads_of(params)
        assert clip(expected, 2.0, 1.0).item() == norm.item()
        assert all(same_numbers(a, b) for a, b in zip(grads, expected, strict=True))


@pytest.mark.torch_kernels
@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_the_norm_spans_devices(devices):
    if "cuda:1" in devices and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")
    params = params_with_grads()
    others = grads_of(clones(params))
    grads = on_device(params, devices)
    ours = clip(grads, 2.0, 1.0)
    assert ours.device == grads[0].device
    assert ours.item() == clip(others, 2.0, 1.0).item()
    assert all(same_numbers(a, b) for a, b in zip(grads, others, strict=True))
