"""Twins across devices: the same optimizer on CUDA and on CPU parameters, with equal gradients."""

import math

import torch
from twins import SHAPES, make_params, same_bits, set_grads


def on_cpu(value):
    """The same nested dicts and lists, with all tensors on the CPU and of their own."""
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [on_cpu(item) for item in value]
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def same_numbers(ours, cpu):
    """Equal to the last bit, wherever `ours` is; and NaN at the same places, whose bits are the
    processor's: an operation gives 0x7fffffff on a GPU, 0xffc00000 or an operand's on x86."""
    ours, cpu = ours.detach().cpu(), cpu.detach()
    if ours.is_complex():
        ours, cpu = torch.view_as_real(ours), torch.view_as_real(cpu)
    if not ours.is_floating_point():
        return same_bits(ours, cpu)
    return same_bits(*(torch.where(x.isnan(), x.new_tensor(math.nan), x) for x in (ours, cpu)))


def assert_same(ours, cpu):
    """Parameters and state are the same bits, but for the dtype of `step`."""
    mine = [p for group in ours.param_groups for p in group["params"]]
    theirs = [p for group in cpu.param_groups for p in group["params"]]
    for p, q in zip(mine, theirs, strict=True):
        assert same_numbers(p, q)
        assert list(ours.state[p]) == list(cpu.state[q])
        for key, value in cpu.state[q].items():
            found = ours.state[p][key]
            assert found.item() == value.item() if key == "step" else same_numbers(found, value)


class CudaTwins:
    def __init__(self, cls, options, shapes=SHAPES, dtype=torch.float32, devices=("cuda",)):
        self.cpu_params = make_params(shapes, dtype)
        self.params = [
            p.detach().to(devices[i % len(devices)]).clone().requires_grad_()
            for i, p in enumerate(self.cpu_params)
        ]
        self.lists = [self.params, self.cpu_params]
        self.cuda = cls(self.params, **options)
        self.cpu = cls(self.cpu_params, **options)
        self.steps = 0

    def step(self, times, grad_scale=None, found_inf=None):
        for _ in range(times):
            set_grads(self.cpu_params, seed=self.steps)
            for p, q in zip(self.params, self.cpu_params, strict=True):
                p.grad = q.grad.to(p.device)
            for optimizer, device in ((self.cuda, "cuda"), (self.cpu, "cpu")):
                for name, value in (("grad_scale", grad_scale), ("found_inf", found_inf)):
                    tensor = None if value is None else torch.tensor(value).to(device)
                    setattr(optimizer, name, tensor)
                optimizer.step()
            self.steps += 1

    def assert_same(self):
        assert self.cuda.fallback_reason is None
        assert_same(self.cuda, self.cpu)
