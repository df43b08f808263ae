"""Fused Adamax; also exports the names of ``torch.optim.adamax``."""

import torch
from torch.optim.adamax import adamax

from fused_optim.optimizer import FusedOptimizer

__all__ = ["Adamax", "adamax"]


class Adamax(FusedOptimizer, torch.optim.Adamax, rule="Adamax"):
    r"""Adamax: Adam with the infinity norm in place of the second moment.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &\leftarrow \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, \frac{m_t}{u_t}

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 2e-3).
        betas (two floats, at least 0 and below 1): :math:`\beta_1, \beta_2`
            (default: 0.9, 0.999).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-8).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``exp_avg`` :math:`m` and ``exp_inf`` :math:`u`, the latter two of the
    parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Kingma, Ba, *Adam: a method for stochastic optimization*, ICLR 2015,
    arXiv:1412.6980, section 7.1.
    """
