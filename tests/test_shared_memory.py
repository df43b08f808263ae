"""Parameters and states that share memory: repeated, overlapping, or of one dict."""

import warnings

import numpy
import pytest
import torch
from torch.nn import Parameter
from twins import (
    TORCH,
    all_options,
    assert_same_state,
    assert_same_values,
    make_params,
    on_cuda,
    set_grads,
)

import fused_optim


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("shape", [(4,), (0,)], ids=str)
def test_repeated_parameters_get_torchs_step(optimizer_class, shape, times):
    options = all_options(optimizer_class)
    p, q = Parameter(torch.ones(shape)), Parameter(torch.ones(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of duplicates
        ours = optimizer_class([p] * times, **options)
        theirs = TORCH[optimizer_class]([q] * times, foreach=False, **options)
    for _ in range(3):
        p.grad, q.grad = torch.ones(shape), torch.ones(shape)
        ours.step()
        theirs.step()
    assert ours.fallback_reason is not None
    assert_same_values([p], [q], rtol=1e-6, atol=1e-6)
    assert_same_state(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_resting_parameter_that_is_repeated_is_averaged_once():
    p = Parameter(torch.zeros(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer = fused_optim.SGD([p, p, Parameter(torch.zeros(2))], lr=0.1, ema_decay=0.5)
    other = optimizer.param_groups[0]["params"][2]
    p.grad, other.grad = torch.zeros(4), torch.zeros(2)
    optimizer.step()
    p.grad = None
    p.data.fill_(1.0)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["ema"], torch.full((4,), 0.5))


def test_two_parameters_whose_state_is_one_dict():
    results = []
    for cls, options in ((fused_optim.Adam, {}), (torch.optim.Adam, {"foreach": False})):
        params = make_params([(2,), (2,)])
        optimizer = cls(params, lr=0.1, **options)
        shared = {}
        optimizer.state[params[0]] = optimizer.state[params[1]] = shared
        for seed in range(2):
            set_grads(params, seed=seed)
            optimizer.step()
        results.append((params, shared["step"]))
    assert_same_values(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert results[0][1] == results[1][1] == 4


@pytest.mark.skipif(on_cuda(), reason="NumPy's memory is the host's")
@pytest.mark.parametrize("states", [False, True])
def test_arrays_that_overlap_under_different_storages(optimizer_class, states):
    """Two tensors of NumPy memory one element apart have storages of their own."""
    array = numpy.ones(101, dtype=numpy.float32)
    values = [torch.from_numpy(array[:100]), torch.from_numpy(array[1:])]
    params = make_params([(100,), (100,)]) if states else [Parameter(v) for v in values]
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    optimizer.step()
    if states:
        assert optimizer.fallback_reason is None
        keys = [k for k, v in optimizer.state[params[0]].items() if v.shape == (100,)]
        if not keys:
            pytest.skip("no state")
        for p, value in zip(params, values, strict=True):
            optimizer.state[p][keys[0]] = value
        set_grads(params, seed=1)
        optimizer.step()
    assert "overlap" in optimizer.fallback_reason


@pytest.mark.skipif(on_cuda(), reason="NumPy's memory is the host's")
def test_arrays_that_are_apart_run_on_the_kernels(optimizer_class):
    array = numpy.ones(200, dtype=numpy.float32)
    params = [Parameter(torch.from_numpy(array[:100])), Parameter(torch.from_numpy(array[100:]))]
    set_grads(params, seed=0)
    optimizer = optimizer_class(params)
    optimizer.step()
    assert optimizer.fallback_reason is None
