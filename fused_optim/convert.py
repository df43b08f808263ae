"""fuse(): turns a torch.optim optimizer into its fused counterpart, in place."""

import functools
import weakref
from typing import Any, TypeVar

from torch.optim import Optimizer

from fused_optim.optimizer import FUSED_CLASSES, FusedOptimizer
from fused_optim.same_rule import advice_for
from fused_optim.shards import owned_by
from fused_optim.torch_class import unhooked

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)

#: Where a user's class keeps its fused one.
_KEPT_AS = "_fused_class"

#: What a fused optimizer has beyond torch's: an attribute of this name would get another meaning.
_OWN_ATTRIBUTES = [
    name
    for name in vars(FusedOptimizer)
    if not name.startswith("_") and not hasattr(Optimizer, name)
]

#: What torch's step consists of: a subclass that has its own does something else.
_PARTS_OF_A_STEP = ("step", "_init_group")


def fuse(optimizer: OptimizerT) -> OptimizerT:
    """Turns an existing torch.optim optimizer into the fused one, in place.

    The object stays the same, so schedulers, scalers and hooks stay attached, and its state and
    parameter groups are kept. ``foreach`` and ``fused`` are reset to None, also of an optimizer
    that is fused already: asking for the fused step overrides what the constructor was given.

    Args:
        optimizer: an optimizer of a torch.optim class that has a fused counterpart, or of a
            subclass of one that overrides nothing of the step; its own methods and attributes
            stay, and it stays an instance of its class.

    Returns:
        The same object.

    Raises:
        TypeError: if its class has no fused counterpart. The message says which fused class follows
            the same rule, for some classes of other libraries, or lists those that have one.
    """
    if not isinstance(optimizer, FusedOptimizer):
        fused_class = _fused_class_for(optimizer)
        owner = owned_by(optimizer)
        _change_class(optimizer, fused_class)
        optimizer._fused.sharded_by = owner  # type: ignore[attr-defined]
    for options in (optimizer.defaults, *optimizer.param_groups):
        options.update({name: None for name in ("foreach", "fused") if name in options})
    optimizer._fused.supports_amp_scaling = None  # type: ignore[attr-defined]
    return optimizer


def _fused_class_for(optimizer: Optimizer) -> type[FusedOptimizer]:
    cls = type(optimizer)
    torch_class = next((base for base in cls.__mro__ if base in FUSED_CLASSES), None)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if torch_class is None:
        have = ", ".join(sorted(fused.__name__ for fused in FUSED_CLASSES.values()))
        raise TypeError(
            f"{name} has no fused counterpart{advice_for(cls) or f'; these have one: {have}'}"
        )
    own = cls.__mro__[: cls.__mro__.index(torch_class)]
    overridden = [part for part in _PARTS_OF_A_STEP if any(part in vars(base) for base in own)]
    # torch's constructors put their wrapper around a subclass's step under the same name.
    overridden = [part for part in overridden if not _is_inherited(cls, torch_class, part)]
    overridden += [part for part in _PARTS_OF_A_STEP[1:] if part in vars(optimizer)]
    if overridden:
        raise TypeError(
            f"{name} has no fused counterpart: it overrides {' and '.join(overridden)} of "
            f"torch.optim.{torch_class.__name__}"
        )
    taken = [
        attribute
        for attribute in _OWN_ATTRIBUTES
        if any(attribute in vars(place) for place in (optimizer, *own))
    ]
    if taken:
        raise TypeError(
            f"{name} has no fused counterpart: its attribute {taken[0]} would be one of the fused "
            "optimizer's"
        )
    return FUSED_CLASSES[cls] if torch_class is cls else _fused_subclass(cls, torch_class)


def _is_inherited(cls: type, torch_class: type, part: str) -> bool:
    """Whether it is the torch class's own, in a wrapper or as it is."""
    own, torchs = (unhooked(getattr(owner, part)) for owner in (cls, torch_class))
    return own is torchs


def _fused_subclass(cls: type[Optimizer], torch_class: type[Optimizer]) -> Any:
    """The class that is a user's, with the fused step in the place of torch's. One for each user's
    class, which keeps it, so that both go together."""
    if _KEPT_AS in vars(cls):
        return vars(cls)[_KEPT_AS]
    fused_class = FUSED_CLASSES[torch_class]
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        # The user's class may hold torch's, in the wrapper that runs the hooks.
        "step": fused_class.step,
        # By its name, pickle would find the user's class.
        "__reduce_ex__": lambda self, protocol: (_new, (cls, torch_class), self.__getstate__()),
    }
    metaclass: Any = type(cls)
    try:
        made = metaclass(cls.__name__, (cls, fused_class), namespace)
    except TypeError as error:
        raise TypeError(
            f"{cls.__module__}.{cls.__qualname__} has no fused counterpart, as it lets none be "
            f"made: {error}"
        ) from error
    setattr(cls, _KEPT_AS, made)
    return made


def _new(cls: type[Optimizer], torch_class: type[Optimizer]) -> Any:
    """An empty optimizer of a user's class, fused: what pickle and copy fill."""
    fused_class = _fused_subclass(cls, torch_class)
    return fused_class.__new__(fused_class)


def _change_class(optimizer: Optimizer, fused_class: type[FusedOptimizer]) -> None:
    scheduled = getattr(optimizer.__dict__.get("step"), "_wrapped_by_lr_sched", False)
    optimizer.__class__ = fused_class
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    optimizer._patch_step_function()
    if scheduled:
        _rewrap_for_scheduler(optimizer)


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
