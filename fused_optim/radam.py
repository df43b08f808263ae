"""Fused RAdam; also exports the names of ``torch.optim.radam``."""

import torch
from torch.optim.radam import radam

from fused_optim.optimizer import FusedOptimizer

__all__ = ["RAdam", "radam"]


class RAdam(FusedOptimizer, torch.optim.RAdam, rule="RAdam"):
    r"""RAdam: Adam that adapts only once the variance of its adaptation is tractable.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda \theta_{t-1} \quad
            \text{(decoupled: } \theta_{t-1} \leftarrow (1 - \gamma \lambda)\,\theta_{t-1}
            \text{ instead)} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t \leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \rho_\infty &\leftarrow 2 / (1 - \beta_2) - 1, \quad
        \rho_t \leftarrow \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        r_t &\leftarrow \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}
            {(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma m_t}{1 - \beta_1^t} \,
            \Big(\frac{r_t \sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon}
            \text{ if } \rho_t > 5 \text{ else } 1\Big)

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-3).
        betas (two floats, at least 0 and below 1): :math:`\beta_1, \beta_2`
            (default: 0.9, 0.999).
        eps (float, at least 0): :math:`\epsilon` (default: 1e-8).
        weight_decay (float, at least 0): :math:`\lambda` (default: 0).
        decoupled_weight_decay (bool): decay the parameter as AdamW does (default: False).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``exp_avg`` :math:`m` and ``exp_avg_sq`` :math:`v`, the latter two of the
    parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Liu et al., *On the variance of the adaptive learning rate and beyond*, ICLR 2020,
    arXiv:1908.03265.
    """
