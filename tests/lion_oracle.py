"""Lion as its paper writes it (arXiv:2302.06675, algorithm 2), and its line in optim_db: torch has
neither."""

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _use_grad_for_differentiable
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)


class LionOracle(Optimizer):
    """Takes what a torch.optim class takes; its implementations are one."""

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0,
        *,
        foreach=None,
        maximize=False,
        capturable=False,
        differentiable=False,
    ):
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for i in range(2):
            if not 0 <= betas[i] < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {betas[i]}")
        if not weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults = dict(locals())
        for name in ("self", "params", "__class__", "i"):
            del defaults[name]
        super().__init__(params, defaults)

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("foreach", None)
            for name in ("maximize", "capturable", "differentiable"):
                group.setdefault(name, False)

    @_use_grad_for_differentiable
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                if theta.grad.is_sparse:
                    raise RuntimeError("Lion does not support sparse gradients")
                if "exp_avg" not in self.state[theta]:
                    self.state[theta]["exp_avg"] = torch.zeros_like(theta)
                self.update(theta, theta.grad, self.state[theta]["exp_avg"], group)
        return loss

    @staticmethod
    def update(theta, g, m, group):
        if theta.is_complex():
            theta, g, m = (torch.view_as_real(t) for t in (theta, g, m))
        (beta1, beta2), eta, lambda_ = group["betas"], group["lr"], group["weight_decay"]
        if isinstance(eta, torch.Tensor):
            eta = eta.squeeze()
        if group["maximize"]:
            g = -g
        c = beta1 * m + (1 - beta1) * g
        update = c.sign() + lambda_ * theta if lambda_ != 0 else c.sign()
        theta.copy_(theta - eta * update)
        m.copy_(beta2 * m + (1 - beta2) * g)


def inputs(device, dtype=None):
    options = {
        "default": {},
        "non-default lr": {"lr": 1e-3},
        "Tensor lr": {"lr": torch.tensor(1e-3)},
        "non-default betas": {"betas": (0.95, 0.98)},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"weight_decay": 0.1, "maximize": True},
        "capturable": {"weight_decay": 0.1, "capturable": True},
    }
    return [OptimizerInput(params=None, kwargs=o, desc=d) for d, o in options.items()]


def error_inputs(device, dtype):
    errors = {
        "Invalid beta parameter at index 0: 1.0": {"betas": (1.0, 0.0)},
        "Invalid beta parameter at index 1: -0.5": {"betas": (0.5, -0.5)},
        "Invalid weight_decay value: -1": {"weight_decay": -1},
        "Invalid learning rate: -0.5": {"lr": -0.5},
    }
    return get_error_inputs_for_all_optims(device, dtype) + [
        ErrorOptimizerInput(
            OptimizerInput(params=None, kwargs=options, desc=message),
            error_type=ValueError,
            error_regex=message,
        )
        for message, options in errors.items()
    ]


LION_INFO = OptimizerInfo(
    LionOracle,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    supported_impls=("foreach", "differentiable"),
    has_capturable_arg=True,
)
