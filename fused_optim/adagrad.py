"""Fused Adagrad; also exports the names of ``torch.optim.adagrad``."""

import torch
from torch.optim.adagrad import adagrad

from fused_optim.optimizer import FusedOptimizer

__all__ = ["Adagrad", "adagrad"]


class Adagrad(FusedOptimizer, torch.optim.Adagrad, rule="Adagrad"):
    r"""Adagrad, optionally with a learning rate that decays.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        s_t &\leftarrow s_{t-1} + g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma}{1 + (t - 1)\,\eta}
            \, \frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-2).
        lr_decay (float, at least 0): :math:`\eta` (default: 0).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        initial_accumulator_value (float, at least 0): :math:`s_0` (default: 0).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-10).
        maximize (bool): step along the gradient instead of against it.
        foreach, fused, differentiable: as in torch; ``foreach=True``, ``fused=False`` and
            ``differentiable=True`` ask for torch's own implementation, which also takes sparse
            gradients.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step`` and ``sum`` :math:`s`, of the parameter's shape and dtype, from construction on.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Duchi, Hazan, Singer, *Adaptive subgradient methods for online learning and stochastic
    optimization*, JMLR 12 (2011).
    """
