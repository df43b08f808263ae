"""What torch puts around each step, hooks and the profiler's range, for the price of what is there.

Torch's constructors wrap ``step`` of the optimizer's class, unless it is marked as wrapped already.
That wrapper opens a range for the profiler in each step, which takes several times as long as
a small fused step, whether or not anybody looks. The one here asks first. Where there is something
to do it calls torch's wrapper, so that hooks and ranges are those of the torch that is installed.
"""

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim import optimizer as torchs_module

from fused_optim import _C
from fused_optim.own_state import BEGUN, CALLING, NOT_STEPPING, PAST_TELLING
from fused_optim.shards import tell_failure
from fused_optim.torch_class import unhooked

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["hook_step_of", "with_hooks"]

StepT = TypeVar("StepT", bound=Callable[..., Any])

#: All wrappers of torch's run this.
_TORCHS_CODE = Optimizer.profile_hook_step(lambda: None).__code__


is_compiling = torch.compiler.is_compiling
_profilers_globals = vars(profiler)


def _is_observed() -> bool:
    """Whether anybody would see the range of this step."""
    return (
        _C.has_profiler_callbacks()
        # Told from Python, by torch 2.14 and later.
        or _profilers_globals.get("_active_cupti_profiler_observer") is not None
    )


def with_hooks(bare: StepT) -> StepT:
    """The step with its hooks and its range, marked so that torch's constructors leave it alone.

    Where a class's step calls that of the class above, hooks run around the outer one alone. What
    raises in it before a norm is exchanged, a hook or a subclass's step, is told to the other ranks
    that wait for this one's part.

    Args:
        bare: the step of a fused optimizer's class, or of a user's subclass of it.
    """
    torchs = Optimizer.profile_hook_step(bare)
    torchs_watched = Optimizer.profile_hook_step(_between_hooks(bare))

    @functools.wraps(bare)
    def step(self: "FusedOptimizer", /, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            is_outer = type(self).step is step
            if is_outer and self._fused.has_options:
                # Not compiled anyhow, and outside of it all errors can be told.
                return untraced(self, *args, **kwargs)
            return torchs(self, *args, **kwargs) if is_outer else bare(self, *args, **kwargs)
        own = self._fused
        stage_around = own.stage
        # The outermost is never inside: a closure that steps again makes a step of its own.
        is_inside = stage_around != NOT_STEPPING and type(self).step is not step
        if is_inside and stage_around != CALLING:
            return bare(self, *args, **kwargs)
        try:
            if not is_inside and _has_work_before(self):
                own.stage = CALLING
                return torchs_watched(self, *args, **kwargs)
            own.stage = BEGUN
            result = bare(self, *args, **kwargs)
            own.stage = PAST_TELLING
            if is_inside:
                return result
            self._optimizer_step_code()
            # Asked only now: the closure may have brought some.
            if self._optimizer_step_post_hooks or torchs_module._global_optimizer_post_hooks:
                _run_post_hooks(self, (self, *args), kwargs)
            return result
        except BaseException:
            if own.stage in (CALLING, BEGUN):
                tell_failure(self)
            raise
        finally:
            own.stage = stage_around

    untraced = torch._disable_dynamo(step)
    step.hooked = True  # type: ignore[attr-defined]
    return cast(StepT, step)


def _has_work_before(optimizer: "FusedOptimizer") -> bool:
    """Whether there is something that torch's wrapper does before a step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or torchs_module._global_optimizer_pre_hooks
        or _is_observed()
    )


def _between_hooks(bare: Callable[..., Any]) -> Callable[..., Any]:
    """The same step; what is around it are hooks."""

    @functools.wraps(bare)
    def step(self: "FusedOptimizer", /, *args: Any, **kwargs: Any) -> Any:
        self._fused.stage = BEGUN
        result = bare(self, *args, **kwargs)
        self._fused.stage = PAST_TELLING
        return result

    return step


def _run_post_hooks(
    optimizer: "FusedOptimizer", args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for hook in itertools.chain(
        optimizer._optimizer_step_post_hooks.values(),
        torchs_module._global_optimizer_post_hooks.values(),
    ):
        hook(optimizer, args, kwargs)


def hook_step_of(cls: type["FusedOptimizer"]) -> None:
    """Wraps the class's step if nothing has, as torch's constructors do, and what they have
    wrapped: two kinds of wrapper around one another would both run the hooks."""
    step: Any = cls.step
    if not getattr(step, "hooked", False):
        cls.step = with_hooks(step)  # type: ignore[method-assign]
    elif getattr(step, "__code__", None) is _TORCHS_CODE:
        cls.step = with_hooks(unhooked(step))  # type: ignore[method-assign]
