"""Clipping, skipping, zeroing and averaging on CUDA: the CPU's bits, no waiting, in graphs, over
devices."""

import itertools

import pytest
import torch
from cuda_twins import CudaTwins, assert_same, same_numbers
from test_cuda_graphs import Replays, capturable
from twins import CASES, case_id, set_grads

import fused_optim

ALL = {"max_grad_norm": 0.5, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.75}
SUBSETS = [dict(chosen) for n in range(1, 5) for chosen in itertools.combinations(ALL.items(), n)]
SHAPES = [(5, 7), (33,), (), (2, 3, 4), (20_001,), (0,), (8192,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def step(twins, planted=None, **amp):
    """One step of both, with an Inf or NaN in a gradient if there is one to plant."""
    set_grads(twins.cpu_params, seed=twins.steps)
    if planted is not None:
        twins.cpu_params[4].grad[12_345] = planted
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        p.grad = q.grad.to(p.device)
    for optimizer, device in ((twins.cuda, "cuda"), (twins.cpu, "cpu")):
        for name, value in amp.items():
            setattr(optimizer, name, torch.tensor(value).to(device))
        optimizer.step()
    twins.steps += 1


def assert_same_results(twins):
    twins.assert_same()
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        assert same_numbers(p.grad, q.grad)
    if twins.cpu.max_grad_norm is not None:
        assert same_numbers(twins.cuda.grad_norm, twins.cpu.grad_norm)
    assert twins.cuda.skipped_steps.item() == twins.cpu.skipped_steps.item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_all_four_to_the_last_bit(case, dtype):
    cls, options = case
    twins = CudaTwins(cls, {**options, **ALL}, shapes=SHAPES, dtype=dtype)
    for i in range(12):
        step(twins, float("nan") if i in (3, 4) else float("inf") if i == 8 else None)
        assert_same_results(twins)
    assert twins.cuda.grad_norm.is_cuda and twins.cuda.skipped_steps.is_cuda
    assert twins.cuda.skipped_steps.item() == 3


@pytest.mark.parametrize("asked", SUBSETS, ids=lambda o: "+".join(o))
def test_each_combination_with_amp(optimizer_class, asked):
    twins = CudaTwins(optimizer_class, asked, shapes=SHAPES)
    step(twins, grad_scale=4.0, found_inf=0.0)
    for overflow in (0.0, 1.0, 0.0):
        step(twins, grad_scale=3.0, found_inf=overflow)
        assert_same_results(twins)


@pytest.mark.parametrize("asked", SUBSETS, ids=lambda o: "+".join(o))
def test_the_host_waits_only_where_averages_begin(optimizer_class, asked, synchronizations):
    twins = CudaTwins(optimizer_class, asked, shapes=SHAPES)
    step(twins)
    set_grads(twins.cpu_params, seed=1)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        p.grad = q.grad.to(p.device)
    twins.cuda.grad_scale, twins.cuda.found_inf = (torch.tensor(x).cuda() for x in (2.0, 0.0))
    with synchronizations() as count:
        twins.cuda.step()
    assert count() == 0


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_a_graph(case):
    """Each replay takes the norm of the gradients as they are then, decides, and zeroes them."""
    cls, options = capturable(case)
    twins = CudaTwins(cls, {**options, **ALL}, shapes=SHAPES)
    step(twins)
    cuda, twins.cuda = twins.cuda, Replays(twins)
    for i in range(5):
        set_grads(twins.cpu_params, seed=10 + i)
        if i == 2:
            twins.cpu_params[4].grad[17] = float("inf")
        for p, q in zip(twins.params, twins.cpu_params, strict=True):
            p.grad = q.grad.to(p.device)
        twins.cuda.step()
        twins.cpu.step()
        assert_same(cuda, twins.cpu)
        assert same_numbers(cuda.grad_norm, twins.cpu.grad_norm)
        assert not any(p.grad.cpu().any() for p in twins.params)
    assert cuda.skipped_steps.item() == twins.cpu.skipped_steps.item() == 1


def test_a_counter_is_not_created_in_a_capture():
    twins = CudaTwins(fused_optim.SGD, {"lr": 0.1})
    twins.step(1)
    twins.cuda.skip_nonfinite = True
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match=r"skipped_steps.*call step\(\) once before the capture"),
        torch.cuda.graph(graph),
    ):
        twins.cuda.step()


@pytest.mark.torch_kernels
@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda:0", "cpu"), ("cpu", "cuda:0")])
def test_one_norm_and_one_decision_over_devices(optimizer_class, devices):
    if "cuda:1" in devices and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here")
    twins = CudaTwins(optimizer_class, ALL, shapes=SHAPES, devices=devices)
    for i in range(6):
        step(twins, float("inf") if i == 3 else None)
        assert_same_results(twins)
    assert twins.cuda.grad_norm.device == twins.params[0].device


def test_more_tensors_than_one_launch_holds(optimizer_class):
    twins = CudaTwins(optimizer_class, ALL, shapes=[(1 + i % 13,) for i in range(900)])
    for _ in range(3):
        set_grads(twins.cpu_params, seed=twins.steps)
        for p, q in zip(twins.params, twins.cpu_params, strict=True):
            p.grad = q.grad.to(p.device)
        twins.cuda.step()
        twins.cpu.step()
        twins.steps += 1
    assert_same_results(twins)


def test_averages_that_join_later_and_rest(optimizer_class):
    twins = CudaTwins(optimizer_class, {"ema_decay": 0.75}, shapes=[(3,), (4,), (5,)])
    for absent in ([2], [2], []):
        set_grads(twins.cpu_params, seed=twins.steps)
        for i, (p, q) in enumerate(zip(twins.params, twins.cpu_params, strict=True)):
            q.grad = None if i in absent else q.grad
            p.grad = None if i in absent else q.grad.to(p.device)
        twins.cuda.step()
        twins.cpu.step()
        twins.steps += 1
        twins.assert_same()


def test_ema_parameters(optimizer_class):
    twins = CudaTwins(optimizer_class, {"ema_decay": 0.5}, shapes=SHAPES)
    for _ in range(3):
        step(twins)
    with twins.cuda.ema_parameters(), twins.cpu.ema_parameters():
        assert_same(twins.cuda, twins.cpu)
    assert_same(twins.cuda, twins.cpu)


def test_strides_unlike_the_parameters(optimizer_class):
    """Strides unlike the parameters' in gradient and average."""
    twins = CudaTwins(optimizer_class, ALL, shapes=[(4, 5, 6)])
    for seed in range(3):
        set_grads(twins.cpu_params, seed=seed)
        for p, q in zip(twins.params, twins.cpu_params, strict=True):
            q.grad = q.grad.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            p.grad = q.grad.to(p.device)
        twins.cuda.step()
        twins.cpu.step()
        assert_same_results(twins)
        for optimizer, p in ((twins.cuda, twins.params[0]), (twins.cpu, twins.cpu_params[0])):
            average = optimizer.state[p]["ema"].cpu()
            average = average.permute(1, 2, 0).contiguous().permute(2, 0, 1)
            optimizer.state[p]["ema"] = average.to(p.device)
