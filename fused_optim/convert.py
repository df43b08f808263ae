"""fuse(): turns a torch.optim optimizer into its fused counterpart, in place."""

import functools
import weakref
from typing import Any, TypeVar

from torch.optim import Optimizer

from fused_optim.optimizer import FUSED_CLASSES, FusedOptimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def fuse(optimizer: OptimizerT) -> OptimizerT:
    """Turns an existing torch.optim optimizer into the fused one, in place.

    The object stays the same, so schedulers, scalers and hooks stay attached, and its state and
    parameter groups are kept. ``foreach`` and ``fused`` are reset to None: asking for the fused
    step overrides what the constructor was given.

    Args:
        optimizer: an optimizer of exactly a torch.optim class that has a fused counterpart.
            One that is fused already is returned as it is.

    Returns:
        The same object.

    Raises:
        TypeError: if its class has no fused counterpart; lists those that have one.
    """
    if isinstance(optimizer, FusedOptimizer):
        return optimizer
    fused_class = FUSED_CLASSES.get(type(optimizer))
    if fused_class is None:
        have = ", ".join(sorted(cls.__name__ for cls in FUSED_CLASSES.values()))
        raise TypeError(
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__} has no fused "
            f"counterpart; these have one: {have}"
        )
    scheduled = getattr(optimizer.__dict__.get("step"), "_wrapped_by_lr_sched", False)
    optimizer.__class__ = fused_class  # type: ignore[assignment]
    for options in (optimizer.defaults, *optimizer.param_groups):
        options.update({name: None for name in ("foreach", "fused") if name in options})
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    optimizer._patch_step_function()
    if scheduled:
        _rewrap_for_scheduler(optimizer)
    return optimizer


def _rewrap_for_scheduler(optimizer: Optimizer) -> None:
    """Replaces the wrapper that a scheduler has put around the old class's step.

    Schedulers set ``_opt_called`` there, to warn when they are stepped before the optimizer.
    """
    reference = weakref.ref(optimizer)  # no cycle: the wrapper lives on the optimizer
    step = type(optimizer).step

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        target = reference()
        assert target is not None, "the optimizer is gone, its step still called"
        target._opt_called = True  # type: ignore[attr-defined]
        return step(target, *args, **kwargs)

    wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = wrapper  # type: ignore[method-assign]
