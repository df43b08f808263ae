"""Lion in PyTorch operations: what the fused Lion is a subclass of, and what it falls back to.

torch.optim has no Lion; this class has the constructor, checks and state that one would have.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from fused_optim.torch_class import check_graph_capture

__all__ = ["LionForLoop"]


class LionForLoop(Optimizer):
    """Lion, parameter by parameter or, with ``foreach=True``, operation by operation.

    See :class:`fused_optim.Lion` for the formula and the arguments.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("foreach", None)
            group.setdefault("maximize", False)
            group.setdefault("capturable", False)
            group.setdefault("differentiable", False)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs a single optimization step."""
        check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in params):
                raise RuntimeError("Lion does not support sparse gradients")
            tensors = [self._operands(p, group["maximize"]) for p in params]
            if not group["foreach"]:
                for operands in tensors:
                    _update(*operands, group)
            elif tensors:
                columns = [list(column) for column in zip(*tensors, strict=True)]
                for alike, _ in self._group_tensors_by_device_and_dtype(columns).values():
                    params, grads, exp_avgs = cast(list[list[Tensor]], alike)
                    _update_foreach(params, grads, exp_avgs, group)
        return loss

    def _operands(self, param: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Parameter, gradient and state, which begins as zeros, as real tensors."""
        assert param.grad is not None
        grad = -param.grad if maximize else param.grad
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        tensors = (param, grad, state["exp_avg"])
        if not torch.is_complex(param):
            return tensors
        real, real_grad, real_exp_avg = (torch.view_as_real(t) for t in tensors)
        return real, real_grad, real_exp_avg


def _scalar_lr(group: dict[str, Any]) -> float | Tensor:
    lr: float | Tensor = group["lr"]
    return lr.squeeze() if isinstance(lr, Tensor) else lr


def _update(param: Tensor, grad: Tensor, exp_avg: Tensor, group: dict[str, Any]) -> None:
    lr, (beta1, beta2) = _scalar_lr(group), group["betas"]
    update = exp_avg.mul(beta1).add(grad, alpha=1 - beta1).sign()
    if group["weight_decay"] != 0:
        update = update.add(param, alpha=group["weight_decay"])
    param.sub_(lr * update)
    exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)


def _update_foreach(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]
) -> None:
    lr, (beta1, beta2) = _scalar_lr(group), group["betas"]
    updates = torch._foreach_mul(exp_avgs, beta1)
    torch._foreach_add_(updates, grads, alpha=1 - beta1)
    torch._foreach_sign_(updates)
    if group["weight_decay"] != 0:
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
    torch._foreach_mul_(updates, lr)
    torch._foreach_sub_(params, updates)
    torch._foreach_mul_(exp_avgs, beta2)
    torch._foreach_add_(exp_avgs, grads, alpha=1 - beta2)
