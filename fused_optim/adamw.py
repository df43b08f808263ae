"""Fused AdamW; also exports the names of ``torch.optim.adamw``."""

import torch
from torch.optim.adamw import adamw

from fused_optim.adam import Adam

__all__ = ["AdamW", "adamw"]


class AdamW(Adam, torch.optim.AdamW, rule="Adam"):
    r"""Adam with decoupled weight decay.

    .. math::
        \theta_t &\leftarrow (1 - \gamma \lambda)\, \theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &\leftarrow \theta_t - \frac{\gamma}{1 - \beta_1^t} \,
            m_t \Big/ \Big(\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon\Big)

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-3).
        betas (two floats or one-element Tensors in [0, 1)): :math:`\beta_1, \beta_2`
            (default: (0.9, 0.999)).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-8).
        weight_decay (float, at least 0): decay :math:`\lambda` (default: 1e-2).
        amsgrad (bool): keep the maximum of the second moment.
        maximize (bool): step along the gradient instead of against it.
        capturable, foreach, fused, differentiable: as in torch; ``foreach=True``,
            ``fused=False`` and ``differentiable=True`` ask for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: as :class:`Adam`'s, and the two exchange checkpoints.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, arXiv:1711.05101.
    """
