"""Fused stochastic gradient descent; also exports the names of ``torch.optim.sgd``."""

import torch
from torch.optim.sgd import sgd

from fused_optim.optimizer import FusedOptimizer

__all__ = ["SGD", "sgd"]


class SGD(FusedOptimizer, torch.optim.SGD, rule="SGD"):
    r"""Stochastic gradient descent, optionally with (Nesterov) momentum.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        b_t &\leftarrow g_t \text{ if } t = 1 \text{ else } \mu b_{t-1} + (1 - \tau) g_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma
            \,(g_t + \mu b_t \text{ if nesterov else } b_t)

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-3).
        momentum (float, at least 0): :math:`\mu` (default: 0, no buffer is kept).
        dampening (float): :math:`\tau` (default: 0).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        nesterov (bool): Nesterov momentum; needs momentum and no dampening.
        maximize (bool): step along the gradient instead of against it.
        foreach, fused, differentiable: as in torch; ``foreach=True``, ``fused=False`` and
            ``differentiable=True`` ask for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``momentum_buffer``, of the parameter's shape and dtype, where momentum is not 0.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Sutskever et al., *On the importance of initialization and momentum in deep
    learning*, ICML 2013, in the form that :class:`torch.optim.SGD` documents.
    """
