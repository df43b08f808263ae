"""Fused Adadelta; also exports the names of ``torch.optim.adadelta``."""

import torch
from torch.optim.adadelta import adadelta

from fused_optim.optimizer import FusedOptimizer

__all__ = ["Adadelta", "adadelta"]


class Adadelta(FusedOptimizer, torch.optim.Adadelta, rule="Adadelta"):
    r"""Adadelta: steps as large as recent steps were, in units of the parameter.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \\
        v_t &\leftarrow \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &\leftarrow \sqrt{u_{t-1} + \epsilon} \, g_t / \sqrt{v_t + \epsilon} \\
        u_t &\leftarrow \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma \Delta_t

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): factor :math:`\gamma` of the step (default: 1).
        rho (float, 0 to 1): decay :math:`\rho` of both averages (default: 0.9).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-6).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda` (default: 0).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``square_avg`` :math:`v` and ``acc_delta`` :math:`u`, the latter two of the
    parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Zeiler, *ADADELTA: an adaptive learning rate method*, 2012, arXiv:1212.5701.
    """
