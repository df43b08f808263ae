"""Fused NAdam; also exports the names of ``torch.optim.nadam``."""

import torch
from torch.optim.nadam import nadam

from fused_optim.optimizer import FusedOptimizer

__all__ = ["NAdam", "nadam"]


class NAdam(FusedOptimizer, torch.optim.NAdam, rule="NAdam"):
    r"""NAdam: Adam with Nesterov momentum.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \quad
            \text{(decoupled: } \theta_{t-1} \leftarrow (1 - \gamma \lambda)\,\theta_{t-1}
            \text{ instead)} \\
        \mu_t &\leftarrow \beta_1 \big(1 - \tfrac{1}{2} \, 0.96^{t \psi}\big) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t \leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \widehat{m}_t &\leftarrow \frac{\mu_{t+1} m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
            + \frac{(1 - \mu_t) g_t}{1 - \prod_{i=1}^{t} \mu_i}, \quad
        \widehat{v}_t \leftarrow \frac{v_t}{1 - \beta_2^t} \\
        \theta_t &\leftarrow \theta_{t-1}
            - \gamma \widehat{m}_t / \big(\sqrt{\widehat{v}_t} + \epsilon\big)

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 2e-3).
        betas (two floats, at least 0 and below 1): :math:`\beta_1, \beta_2`
            (default: 0.9, 0.999).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-8).
        weight_decay (float, at least 0): :math:`\lambda` (default: 0).
        momentum_decay (float, at least 0): :math:`\psi` (default: 4e-3).
        decoupled_weight_decay (bool): decay the parameter as AdamW does (default: False).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``mu_product`` :math:`\prod \mu_i` (one element), ``exp_avg`` :math:`m` and
    ``exp_avg_sq`` :math:`v`, the latter two of the parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Dozat, *Incorporating Nesterov momentum into Adam*, ICLR workshop 2016,
    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.
    """
