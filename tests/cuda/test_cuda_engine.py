"""The CUDA engine steps as the CPU engine does, to the last bit, wherever tensors lie."""

import pytest
import torch
from cuda_twins import CudaTwins, assert_same, on_cpu
from twins import CASES, SCALARS, case_id, set_grads

import fused_optim

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
SGD_DAMPENED = (fused_optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_hundred_steps_to_the_last_bit(case, dtype):
    twins = CudaTwins(*case, dtype=dtype)
    twins.step(100)
    twins.assert_same()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_large_and_unaligned_tensors(case):
    """Several chunks to a block, ragged ends, and memory that 16-byte accesses don't fit."""
    twins = CudaTwins(*case, shapes=[(100_003,), (8192,), (8193,), (50_000,)])
    for params in twins.lists:
        flat = torch.empty(50_001, device=params[0].device)
        flat[1:].copy_(params.pop().detach())
        params.append(flat[1:].requires_grad_())
    cls, options = case
    twins.cuda, twins.cpu = cls(twins.params, **options), cls(twins.cpu_params, **options)
    twins.step(3)
    twins.assert_same()


def test_many_tensors_in_forty_groups(optimizer_class):
    def grouped(params):
        return [{"params": params[i::40], "lr": 0.1 / (i + 1)} for i in range(40)]

    twins = CudaTwins(optimizer_class, {}, shapes=[(1 + i % 13,) for i in range(1500)])
    twins.cuda = optimizer_class(grouped(twins.params))
    twins.cpu = optimizer_class(grouped(twins.cpu_params))
    twins.step(2)
    twins.assert_same()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_strides_unlike_the_parameters(case):
    twins = CudaTwins(*case, shapes=[(4, 5, 6)])
    for seed in range(3):
        set_grads(twins.cpu_params, seed=seed)
        for p, q in zip(twins.params, twins.cpu_params, strict=True):
            q.grad = q.grad.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            p.grad = q.grad.to(p.device)
            assert p.grad.stride() != p.stride()
        twins.cuda.step()
        twins.cpu.step()
    twins.assert_same()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_cpu_and_cuda_parameters_in_one_group(case):
    twins = CudaTwins(*case, devices=["cuda", "cpu"])
    twins.step(3)
    twins.assert_same()
    for p in twins.params:
        assert all(value.device == p.device for value in twins.cuda.state[p].values())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_two_devices_in_one_group(two_gpus, case):
    """Each device's tensors are stepped there, and the current device stays as it was."""
    twins = CudaTwins(*case, devices=["cuda:0", "cuda:1"])
    twins.step(3)
    twins.assert_same()
    assert torch.cuda.current_device() == 0


def test_hyperparameters_in_device_tensors(optimizer_class):
    """lr, and betas where there are any: read by the kernel, changes take effect at once."""
    for dtype in (torch.float32, torch.float64):
        twins = CudaTwins(optimizer_class, {})
        ours, cpu = twins.cuda.param_groups[0], twins.cpu.param_groups[0]
        ours["lr"] = lr = torch.tensor(0.25, dtype=dtype).to("cuda")
        cpu["lr"] = 0.25
        if "betas" in ours:
            cpu["betas"] = (0.5, 0.75)
            ours["betas"] = tuple(torch.tensor(beta).to("cuda") for beta in cpu["betas"])
        twins.step(2)
        lr.copy_(torch.tensor(0.125, dtype=dtype))
        cpu["lr"] = 0.125
        twins.step(2)
        twins.assert_same()


def test_a_device_lr_for_parameters_everywhere(optimizer_class, two_gpus):
    """In one group: beside the tensor, on the other GPU, and on the CPU, which has to wait."""
    twins = CudaTwins(optimizer_class, {"lr": 0.25}, devices=["cuda:0", "cuda:1", "cpu"])
    twins.cuda.param_groups[0]["lr"] = torch.tensor(0.25).to("cuda:1")
    twins.step(2)
    twins.assert_same()


def test_lr_in_a_cpu_tensor_or_on_another_device(optimizer_class, two_gpus):
    for device in ("cpu", "cuda:1"):
        twins = CudaTwins(optimizer_class, {"lr": 0.25})
        twins.cuda.param_groups[0]["lr"] = torch.tensor(0.25).to(device)
        twins.step(2)
        twins.assert_same()


@pytest.mark.torch_kernels
def test_more_elements_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 25e9:
        pytest.skip("needs 25 GB of GPU memory")
    size = 2**32 + 1001
    param = torch.zeros(size, dtype=torch.float16, device="cuda", requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = fused_optim.SGD([param], lr=0.5)
    optimizer.step()
    assert optimizer.fallback_reason is None
    assert all((part == -0.5).all() for part in param.detach().split(2**28))


# State: `step` lives on the device, wherever a checkpoint had it.


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_step_is_a_float32_on_the_device(optimizer_class, default):
    twins = CudaTwins(optimizer_class, {})
    torch.set_default_dtype(default)
    twins.step(2)
    for p in twins.params:
        for name, value in twins.cuda.state[p].items():
            assert value.device == p.device
            if name == "step":
                assert value.dtype == torch.float32 and value.shape == () and value.item() == 2


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_checkpoints_cross_devices(case):
    """A state from CPU training goes on with CUDA parameters, and back."""
    cls, options = case
    twins = CudaTwins(*case)
    twins.step(3)
    there, back = CudaTwins(*case), CudaTwins(*case)
    for p, q in zip([*there.params, *back.cpu_params], twins.cpu_params * 2, strict=True):
        p.data.copy_(q.detach())
    for p, q in zip([*there.cpu_params, *back.params], twins.cpu_params * 2, strict=True):
        p.data.copy_(q.detach())
    cpu_state = cls(twins.cpu_params, **options)
    cpu_state.load_state_dict(twins.cpu.state_dict())
    there.cuda.load_state_dict(twins.cpu.state_dict())
    back.cpu.load_state_dict(twins.cuda.state_dict())
    there.cpu, back.cuda = cls(there.cpu_params, **options), None
    there.cpu.load_state_dict(on_cpu(twins.cpu.state_dict()))
    there.step(2)
    there.assert_same()
    for p, q in zip(back.cpu_params, there.cpu_params, strict=True):
        p.grad = q.grad
    for seed in range(3, 5):
        set_grads(back.cpu_params, seed=seed - 3)
        back.cpu.step()
    assert_same(back.cpu, there.cpu)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.torch_kernels)])
def test_a_double_step_is_taken_over(device):
    """As torch keeps it where float64 is the default dtype."""
    twins = CudaTwins(fused_optim.Adam, {})
    twins.step(2)
    for p in twins.params:
        twins.cuda.state[p]["step"] = torch.tensor(2.0, dtype=torch.float64, device=device)
        assert next(iter(twins.cuda.state[p])) == "step"
    twins.step(2)
    twins.assert_same()
    assert all(twins.cuda.state[p]["step"].dtype == torch.float32 for p in twins.params)


# AMP: scale and overflow are read by the kernel.


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0, float("nan")])
@pytest.mark.parametrize("case", [*CASES, SGD_DAMPENED], ids=case_id)
def test_found_inf_on_the_device(case, found_inf):
    twins = CudaTwins(*case)
    for overflow in (0.0, found_inf, 0.0):
        twins.step(1, grad_scale=3.0, found_inf=overflow)
    twins.assert_same()


@pytest.mark.parametrize("case", [*CASES, SGD_DAMPENED], ids=case_id)
def test_overflow_in_the_first_step(case):
    """Whatever state it leaves, the next step is a first step."""
    twins = CudaTwins(*case)
    twins.step(1, found_inf=1.0)
    twins.step(3)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=0, atol=0)


def test_amp_with_parameters_elsewhere(optimizer_class, two_gpus):
    """Beside CPU parameters, and on another GPU than the scaler's."""
    for devices in (["cuda", "cpu"], ["cuda:1"], ["cuda:1", "cuda:0"]):
        twins = CudaTwins(optimizer_class, {}, devices=devices)
        for overflow in (0.0, 1.0, 0.0):
            twins.step(1, grad_scale=3.0, found_inf=overflow)
        twins.assert_same()


# What is wrong is an error that names it, and changes nothing.


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize(
    "value",
    [
        lambda t: t.new_empty(3).cpu() if t.dim() else torch.tensor([1.0, 2.0]),
        lambda t: torch.full_like(t.cpu(), -1.0) if not t.dim() else t.cpu(),
        lambda t: "text" if t.dim() else None,
        lambda t: torch.empty_like(t, device="meta"),
    ],
    ids=["shape", "device_or_count", "no_tensor", "meta"],
)
def test_bad_state(name, value):
    twins = CudaTwins(fused_optim.Adam, {}, shapes=[(2, 3), (4,)])
    twins.step(1)
    good = twins.cuda.state[twins.params[1]][name]
    twins.cuda.state[twins.params[1]][name] = bad = value(good)
    before = [p.detach().cpu() for p in twins.params]
    if name == "step" and bad is None:
        del twins.cuda.state[twins.params[1]][name]
    with pytest.raises(RuntimeError, match=f"group 0, parameter 1: '{name}'"):
        twins.cuda.step()
    assert all(torch.equal(p.detach().cpu(), q) for p, q in zip(twins.params, before, strict=True))
    assert twins.cuda.state[twins.params[0]]["step"].item() == 1
    if bad is None:
        twins.cuda.state[twins.params[1]] = {"step": good, **twins.cuda.state[twins.params[1]]}
    else:
        twins.cuda.state[twins.params[1]][name] = good
    twins.cuda.step()


def test_gradient_on_another_device():
    param = torch.zeros(3).cuda().requires_grad_()
    optimizer = fused_optim.SGD([param])
    with pytest.raises(RuntimeError):  # torch's own
        param.grad = torch.zeros(3)
    optimizer.step()


# The host never waits for the device.


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_synchronisation(case, synchronizations):
    """From the first step on, with AMP, a scheduler's new lr and a device lr."""
    twins = CudaTwins(*case)
    set_grads(twins.cpu_params, seed=0)
    for p, q in zip(twins.params, twins.cpu_params, strict=True):
        p.grad = q.grad.to(p.device)
    scale, found_inf = torch.tensor(2.0).cuda(), torch.tensor(0.0).cuda()
    lr = torch.tensor(0.1).cuda()
    with synchronizations() as count:
        twins.cuda.step()
        twins.cuda.param_groups[0]["lr"] = 0.2
        twins.cuda.step()
        twins.cuda.param_groups[0]["lr"] = lr
        twins.cuda.grad_scale, twins.cuda.found_inf = scale, found_inf
        twins.cuda.step()
    assert count() == 0


def test_a_cpu_state_moves_without_waiting(optimizer_class, synchronizations):
    """As with fuse(), where torch kept `step` and the like on the CPU."""
    twins = CudaTwins(optimizer_class, {})
    twins.step(1)
    for state in twins.cuda.state.values():
        for name in state.keys() & SCALARS[optimizer_class]:
            state[name] = state[name].cpu()
    with synchronizations() as count:
        twins.cuda.step()
    assert count() == 0
    set_grads(twins.cpu_params, seed=0)
    twins.cpu.step()
    twins.assert_same()
