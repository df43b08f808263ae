"""Fused Rprop; also exports the names of ``torch.optim.rprop``."""

import torch
from torch.optim.rprop import rprop

from fused_optim.optimizer import FusedOptimizer

__all__ = ["Rprop", "rprop"]


class Rprop(FusedOptimizer, torch.optim.Rprop, rule="Rprop"):
    r"""Rprop: a step size for each element, which grows while the gradient keeps its sign.

    .. math::
        \eta_t &\leftarrow \eta_+ \text{ if } g_t g_{t-1} > 0, \;
            \eta_- \text{ if } g_t g_{t-1} < 0, \text{ else } 1 \\
        d_t &\leftarrow \text{clamp}(\eta_t d_{t-1}, d_{min}, d_{max}) \\
        g_t &\leftarrow 0 \text{ if } g_t g_{t-1} < 0 \\
        \theta_t &\leftarrow \theta_{t-1} - \text{sign}(g_t) \, d_t

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): first step size :math:`d_0` (default: 1e-2).
        etas (two floats, below and above 1): :math:`\eta_-, \eta_+` (default: 0.5, 1.2).
        step_sizes (two floats): :math:`d_{min}, d_{max}` (default: 1e-6, 50).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``prev`` (the last gradient) and ``step_size`` :math:`d`, the latter two of
    the parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Riedmiller, Braun, *A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm*, ICNN 1993.
    """
