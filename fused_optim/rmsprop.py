"""Fused RMSprop; also exports the names of ``torch.optim.rmsprop``."""

import torch
from torch.optim.rmsprop import rmsprop

from fused_optim.optimizer import FusedOptimizer

__all__ = ["RMSprop", "rmsprop"]


class RMSprop(FusedOptimizer, torch.optim.RMSprop, rule="RMSprop"):
    r"""RMSprop, optionally centered and with momentum.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        v_t &\leftarrow \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        \tilde v_t &\leftarrow v_t - \bar g_t^2 \text{ with }
            \bar g_t = \alpha \bar g_{t-1} + (1 - \alpha) g_t \text{ if centered else } v_t \\
        b_t &\leftarrow \mu b_{t-1} + g_t / (\sqrt{\tilde v_t} + \epsilon) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma b_t

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-2).
        alpha (float, at least 0): smoothing constant :math:`\alpha` (default: 0.99).
        eps (float, at least 0): :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        momentum (float, at least 0): :math:`\mu` (default: 0, no buffer is kept).
        centered (bool): divide by an estimate of the gradient's standard deviation.
        maximize (bool): step along the gradient instead of against it.
        capturable, foreach, differentiable: as in torch; ``foreach=True`` and
            ``differentiable=True`` ask for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step`` (a scalar), ``square_avg``, with momentum ``momentum_buffer``, if centered
    ``grad_avg``, of the parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Tieleman and Hinton, lecture 6e of *Neural Networks for Machine Learning*, 2012;
    centered: Graves, *Generating Sequences With Recurrent Neural Networks*, arXiv:1308.0850.
    """
