"""How many launches a step takes, and what the user is told when one fails."""

import pytest
import torch
from cuda_twins import CudaTwins
from gpu import simulated_argument_bytes, simulated_launches
from twins import set_grads

import fused_optim
import fused_optim._C as _C


def launches_of(twins):
    before = simulated_launches()
    twins.cuda.step()
    return simulated_launches() - before


@pytest.mark.simulation
def test_one_launch_for_all_tensors_of_all_groups(optimizer_class):
    twins = CudaTwins(optimizer_class, {}, shapes=[(1 + i % 7,) for i in range(300)])
    twins.cuda = optimizer_class(
        [{"params": twins.params[i::30], "lr": 0.1 / (i + 1)} for i in range(30)]
    )
    twins.step(1)
    assert launches_of(twins) == 1


@pytest.mark.simulation
@pytest.mark.parametrize(("tensors", "at_most"), [(1, 4_096), (66, 4_096), (67, 32_764)])
def test_few_tensors_travel_in_a_small_argument(tensors, at_most):
    twins = CudaTwins(fused_optim.Adam, {}, shapes=[(3,)] * tensors)
    twins.step(2)
    assert launches_of(twins) == 1
    assert at_most / 2 < simulated_argument_bytes() <= at_most
    twins.cpu.step()
    twins.assert_same()


@pytest.mark.simulation
@pytest.mark.parametrize(("tensors", "at_most"), [(1, 4_096), (169, 4_096), (170, 32_764)])
def test_so_do_few_gradients(tensors, at_most):
    grads = [torch.tensor([3.0, 4.0]).to("cuda") for _ in range(tensors)]
    norm = _C.grad_norm(grads, 2.0)
    assert norm.item() == pytest.approx(5 * tensors**0.5)
    assert _C.clip_grads(grads, norm, 1.0) is None
    assert at_most / 2 < simulated_argument_bytes() <= at_most
    for grad in grads:
        assert grad.cpu().norm().item() == pytest.approx(tensors**-0.5)


@pytest.mark.simulation
def test_one_launch_a_device_dtype_and_variant(two_gpus):
    twins = CudaTwins(fused_optim.Adam, {}, shapes=[(5,)] * 8, devices=["cuda:0", "cuda:1"])
    for i in range(2, 8, 3):
        twins.params[i].data = twins.params[i].data.cpu().double().to(twins.params[i].device)
    twins.cuda = fused_optim.Adam(
        [{"params": twins.params[:6]}, {"params": twins.params[6:], "amsgrad": True}]
    )
    for p in twins.params:
        p.grad = torch.zeros(p.shape, dtype=p.dtype).to(p.device)
    twins.cuda.step()
    assert launches_of(twins) == len(
        {(p.device, p.dtype, i >= 6) for i, p in enumerate(twins.params)}
    )


@pytest.mark.simulation
def test_a_failed_launch_names_the_kernel(monkeypatch):
    twins = CudaTwins(fused_optim.Adam, {"amsgrad": True})
    twins.step(1)
    monkeypatch.setenv("SIMULATED_LAUNCH_FAILURE", "1")
    with pytest.raises(
        RuntimeError,
        match="launching kernel Adam<float32, exp_avg, exp_avg_sq, max_exp_avg_sq> on cuda:0 "
        r"failed: too many resources .* \(cudaErrorLaunchOutOfResources\)",
    ):
        twins.cuda.step()


@pytest.mark.simulation
def test_a_device_that_nothing_was_compiled_for(monkeypatch, two_gpus):
    """Noticed before anything is changed. float16 on a second device: asked for here alone."""
    twins = CudaTwins(fused_optim.RMSprop, {}, dtype=torch.float16, devices=["cuda:1"])
    set_grads(twins.cpu_params, seed=0)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        p.grad = q.grad.to(p.device)
    monkeypatch.setenv("SIMULATED_OTHER_ARCH", "1")
    with pytest.raises(
        RuntimeError,
        match="kernel RMSprop<float16, square_avg> on cuda:1 .*compiled for architectures "
        r"[0-9., ]+; set TORCH_CUDA_ARCH_LIST",
    ):
        twins.cuda.step()
    assert not twins.cuda.state
    monkeypatch.delenv("SIMULATED_OTHER_ARCH")
    twins.step(1)
    twins.assert_same()


@pytest.mark.simulation
def test_when_counters_of_arrived_blocks_run_out():
    """Each capture takes one of 4,096. Without, steps are advanced by a launch of their own."""
    twins = CudaTwins(fused_optim.Adam, {"capturable": True}, shapes=[(3,)])
    twins.step(1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(4096):
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            twins.cuda.step()
            graph.capture_end()
        graph.replay()
    twins.cpu.step()
    twins.assert_same()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        before = simulated_launches()
        twins.cuda.step()
        assert simulated_launches() - before == 2
    graph.replay()
    twins.cpu.step()
    twins.assert_same()
    twins.step(1)  # on the default stream, which has one
    assert launches_of(twins) == 1
