"""Fused averaged SGD; also exports the names of ``torch.optim.asgd``."""

import torch
from torch.optim.asgd import asgd

from fused_optim.optimizer import FusedOptimizer

__all__ = ["ASGD", "asgd"]


class ASGD(FusedOptimizer, torch.optim.ASGD, rule="ASGD"):
    r"""Averaged stochastic gradient descent: SGD that also keeps an average of the parameters.

    .. math::
        g_t &\leftarrow \pm g_t + \lambda_2 \theta_{t-1} \\
        \theta_t &\leftarrow (1 - \lambda \eta_t)\, \theta_{t-1} - \eta_t g_t \\
        \bar\theta_t &\leftarrow \bar\theta_{t-1} + \mu_t (\theta_t - \bar\theta_{t-1}) \\
        \eta_{t+1} &\leftarrow \gamma / (1 + \lambda \gamma t)^\alpha, \quad
        \mu_{t+1} \leftarrow 1 / \max(1, t - t_0)

    with :math:`\eta_1 = \gamma` and :math:`\mu_1 = 1`.

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-2).
        lambd (float): decay :math:`\lambda` of parameter and step size (default: 1e-4).
        alpha (float): power :math:`\alpha` of the step size's decay (default: 0.75).
        t0 (float, in steps): step :math:`t_0` at which averaging begins (default: 1e6).
        weight_decay (float, at least 0): L2 penalty :math:`\lambda_2` (default: 0).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for torch's own implementation.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``step``, ``eta`` :math:`\eta` and ``mu`` :math:`\mu` (one element each), and ``ax``
    :math:`\bar\theta`, of the parameter's shape and dtype: the average to evaluate.

    Raises:
        ValueError: for arguments out of range, with torch's messages.

    Source: Polyak, Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM Journal
    on Control and Optimization 30, 1992; step sizes by Bottou, *Large-scale machine learning with
    stochastic gradient descent*, COMPSTAT 2010.
    """
