"""Masters, 8-bit moments and stochastic rounding on CUDA: the CPU's bits, no waiting, in graphs."""

import pytest
import test_compact_kernels
import torch
from cuda_twins import CudaTwins, on_cpu
from test_compact_kernels import ADAMW, AROUND, KINDS
from test_cuda_graphs import Replays, capturable
from twins import all_options, set_grads

import fused_optim

#: Adagrad's state is there from the beginning, and torch's kernels make it of another dtype.
CASES = [
    pytest.param(
        *case.values,
        id=case.id,
        marks=[pytest.mark.torch_kernels] if case.values[0] is fused_optim.Adagrad else [],
    )
    for case in test_compact_kernels.CASES
]
SHAPES = [(5, 7), (), (0,), (4096,), (20_001,)]
#: Two that have no step of their own.
RULES = [(fused_optim.SGD, {"momentum": 0.9}), (fused_optim.Lion, {}), (fused_optim.AdamW, {})]


@pytest.mark.parametrize(("cls", "dtype", "options"), CASES)
def test_the_cpus_bits(cls, dtype, options):
    around = {name: value for name, value in AROUND.items() if name != "ema_decay"}
    twins = CudaTwins(cls, {**options, **around}, shapes=SHAPES, dtype=dtype)
    twins.step(1)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        average = q.detach().to(torch.float32, copy=True)
        twins.cpu.state[q]["ema"] = average
        twins.cuda.state[p]["ema"] = average.to(p.device)
    for optimizer in (twins.cuda, twins.cpu):
        optimizer.ema_decay = 0.75
    for overflow in (0.0, 1.0, 0.0):
        twins.step(1, grad_scale=3.0, found_inf=overflow)
        twins.assert_same()


@pytest.mark.parametrize(("cls", "options"), RULES)
def test_in_a_graph(cls, options):
    """Each replay draws other random bits, as it counts the steps on the device."""
    case = capturable((cls, {**options, **ADAMW}))
    twins = CudaTwins(*case, shapes=SHAPES, dtype=torch.bfloat16)
    twins.step(2)
    cuda, twins.cuda = twins.cuda, Replays(twins)
    twins.step(3)
    twins.cuda = cuda
    twins.assert_same()
    assert all(state["step"].item() == 5 for state in cuda.state.values())
    twins.step(1)
    twins.assert_same()


@pytest.mark.parametrize("kind", KINDS)
def test_strides_and_addresses_unlike_the_parameters(kind):
    dtype, asked = KINDS[kind]
    twins = CudaTwins(fused_optim.AdamW, asked, shapes=[(50, 100), (9000,)], dtype=dtype)
    for seed in range(3):
        set_grads(twins.cpu_params, seed=seed)
        for p, q in zip(twins.params, twins.cpu_params, strict=True):
            if q.dim() == 2:
                q.grad = q.grad.t().contiguous().t()
                p.grad = q.grad.to(p.device)
            else:
                whole = torch.empty(q.numel() + 1, dtype=dtype).to(p.device)
                whole[1:].copy_(q.grad)
                p.grad = whole[1:]
        twins.cuda.step()
        twins.cpu.step()
        twins.assert_same()


@pytest.mark.parametrize(("cls", "options"), RULES)
def test_no_synchronisation(cls, options, synchronizations):
    twins = CudaTwins(cls, {**options, **ADAMW}, shapes=SHAPES, dtype=torch.bfloat16)
    set_grads(twins.cpu_params, seed=0)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        p.grad = q.grad.to(p.device)
    with synchronizations() as count:
        twins.cuda.step()
        twins.cuda.step()
    assert count() == 0


@pytest.mark.parametrize(("cls", "options"), RULES)
def test_checkpoints_cross_devices(cls, options):
    """A state from CPU training goes on with CUDA parameters."""
    options = {**options, **ADAMW}
    twins = CudaTwins(cls, options, shapes=SHAPES, dtype=torch.bfloat16)
    twins.step(3)
    saved = on_cpu(twins.cpu.state_dict())
    twins.cuda, twins.cpu = cls(twins.params, **options), cls(twins.cpu_params, **options)
    twins.cuda.load_state_dict(saved)
    twins.cpu.load_state_dict(saved)
    twins.step(2)
    twins.assert_same()


@pytest.mark.simulation
def test_a_failed_launch_names_the_kernel(monkeypatch):
    twins = CudaTwins(fused_optim.AdamW, ADAMW, dtype=torch.bfloat16)
    twins.step(1)
    monkeypatch.setenv("SIMULATED_LAUNCH_FAILURE", "1")
    with pytest.raises(
        RuntimeError, match="kernel Adam<compact formats, exp_avg, exp_avg_sq> on cuda:0 failed"
    ):
        twins.cuda.step()


def test_two_devices_and_a_cpu(two_gpus):
    options = {**all_options(fused_optim.SGD), **ADAMW}
    devices = ["cuda:0", "cuda:1", "cpu"]
    twins = CudaTwins(
        fused_optim.SGD, options, shapes=[(5000,)] * 4, dtype=torch.bfloat16, devices=devices
    )
    twins.step(3)
    twins.assert_same()
