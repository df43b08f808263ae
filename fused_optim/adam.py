"""Fused Adam; also exports the names of ``torch.optim.adam``."""

import torch
from torch.optim.adam import adam

from fused_optim.optimizer import FusedOptimizer

__all__ = ["Adam", "adam"]


class Adam(FusedOptimizer, torch.optim.Adam, rule="Adam"):
    r"""Adam, optionally with AMSGrad or decoupled weight decay.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \,
            m_t \Big/ \Big(\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon\Big)

    With ``amsgrad``, :math:`\max(v_1, \ldots, v_t)` takes the place of :math:`v_t` in the last
    line; with ``decoupled_weight_decay`` the decay is that of :class:`AdamW`.

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-3).
        betas (two floats or one-element Tensors in [0, 1)): :math:`\beta_1, \beta_2`
            (default: (0.9, 0.999)).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-8).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        amsgrad (bool): keep the maximum of the second moment.
        maximize (bool): step along the gradient instead of against it.
        decoupled_weight_decay (bool): decay as in :class:`AdamW`.
        capturable, foreach, fused, differentiable: as in torch; ``foreach=True``,
            ``fused=False`` and ``differentiable=True`` ask for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step`` (a scalar), ``exp_avg``, ``exp_avg_sq`` and with amsgrad ``max_exp_avg_sq``,
    of the parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, arXiv:1412.6980;
    Reddi et al., *On the Convergence of Adam and Beyond*, arXiv:1904.09237.
    """
