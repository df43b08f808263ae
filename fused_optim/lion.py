"""Fused Lion, which torch.optim lacks."""

from fused_optim.lion_for_loop import LionForLoop
from fused_optim.optimizer import FusedOptimizer

__all__ = ["Lion"]


class Lion(FusedOptimizer, LionForLoop, rule="Lion"):
    r"""Lion: steps of one size, in the direction of an average of gradients.

    .. math::
        g_t &\leftarrow \pm g_t \\
        c_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        \theta_t &\leftarrow \theta_{t-1}
            - \gamma \, (\text{sign}(c_t) + \lambda \theta_{t-1}) \\
        m_t &\leftarrow \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Every element moves by :math:`\gamma`: the paper takes learning rates 3 to 10 times smaller,
    and a weight decay as many times larger, than for AdamW.

    Args:
        params: tensors, named tensors or dicts that define parameter groups; of dtype float32,
            float64, bfloat16, float16, complex64 or complex128 and any shape.
        lr (float or Tensor, at least 0): learning rate :math:`\gamma` (default: 1e-4).
        betas (two floats, at least 0 and below 1): :math:`\beta_1`, the weight of the average in
            the step, and :math:`\beta_2`, its decay (default: 0.9, 0.99).
        weight_decay (float, at least 0): decoupled weight decay :math:`\lambda` (default: 0).
        maximize (bool): step along the gradient instead of against it.
        capturable (bool): whether steps may be captured in CUDA graphs.
        foreach, differentiable: as in torch; ``True`` asks for the implementation in PyTorch
            operations.
        max_grad_norm, skip_nonfinite, zero_grads, ema_decay, ema_dtype, norm_group: see
            :class:`FusedOptimizer`.
        state_dtype, master_bits, stochastic_rounding, rounding_seed: see
            :class:`FusedOptimizer`.

    State: ``exp_avg`` :math:`m`, of the parameter's shape and dtype.

    Raises:
        ValueError: for arguments out of range.

    Source: Chen et al., *Symbolic discovery of optimization algorithms*, NeurIPS 2023,
    arXiv:2302.06675.
    """
