"""States, averages and gradients in dtypes of their own, on CUDA: the CPU's bits."""

import pytest
import torch
from cuda_twins import CudaTwins
from twins import CASES, all_options, set_grads

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
#: (parameter, gradient, states, average).
MIXES = [
    (F32, F32, BF16, F32),
    (BF16, BF16, F32, F32),
    (F16, F16, F32, BF16),
    (BF16, F32, BF16, F32),
    (F32, BF16, F32, BF16),
    (F64, F64, BF16, F32),
]
SHAPES = [(5, 7), (33,), (), (20_001,), (0,), (8192,)]
classes = pytest.mark.parametrize("cls", sorted({c for c, _ in CASES}, key=lambda c: c.__name__))


def mix_id(mix):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in mix)


def step(twins, dtype):
    set_grads(twins.cpu_params, seed=twins.steps)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        if q.dtype != dtype:
            p.grad_dtype = q.grad_dtype = None
        q.grad = q.grad.to(dtype)
        p.grad = q.grad.to(p.device)
    twins.cuda.step()
    twins.cpu.step()
    twins.steps += 1


@pytest.mark.parametrize("mix", MIXES, ids=mix_id)
@classes
def test_the_cpus_bits(cls, mix):
    if mix[1] != mix[0] and not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    options = {**all_options(cls), "state_dtype": mix[2], "max_grad_norm": 0.5}
    twins = CudaTwins(cls, options, shapes=SHAPES, dtype=mix[0])
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        for name in twins.cpu.state[q].keys() - {"step"}:  # Adagrad's, of the constructor
            state = twins.cpu.state[q][name].to(mix[2])
            twins.cpu.state[q][name], twins.cuda.state[p][name] = state, state.to(p.device)
    step(twins, mix[1])
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        average = q.detach().to(mix[3], copy=True)
        twins.cpu.state[q]["ema"] = average
        twins.cuda.state[p]["ema"] = average.to(p.device)
    for optimizer in (twins.cuda, twins.cpu):
        optimizer.ema_decay = 0.75
    for _ in range(3):
        step(twins, mix[1])
        twins.assert_same()
