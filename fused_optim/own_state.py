"""What a fused optimizer has beyond what its torch class has, in one object."""

import os
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, overload

from fused_optim import _C
from fused_optim.step_options import STEP_OPTIONS

if TYPE_CHECKING:
    from fused_optim.norm_plan import NormPlan
    from fused_optim.told_later import ToldLater

__all__ = ["BEGUN", "CALLING", "NOT_STEPPING", "PAST_TELLING", "OwnState", "OwnStateOf"]

#: How far a step is. Calling hooks or the closure, it has steps in it that are whole ones, of their
#: own; once it has begun, a step within it is a part of it, that of a class above. In both other
#: ranks may wait for this one's part of a norm; past that, they have it or know that they never
#: will.
NOT_STEPPING, CALLING, BEGUN, PAST_TELLING = range(4)

#: Options, and what steps find.
_SAVED = (
    *STEP_OPTIONS,
    *("state_dtype", "master_bits", "stochastic_rounding", "has_compact"),
    *("grad_norm", "skipped_steps"),
)


class _InThisProcess:
    """What copies share and pickles leave behind."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "_InThisProcess":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _InThisProcess, ()


class OwnState:
    """Step options, what steps found, and how the last one was done.

    An optimizer holds it from construction on and never another one: wrappers that copy or share
    the optimizer's ``__dict__``, as Lightning's does, read and write the same.
    """

    def __init__(self) -> None:
        self.options = _C.StepOptions()
        #: Whether one of the options asks for something.
        self.has_options = False
        #: Between parameters and averages.
        self.exchange = _C.Exchange()
        #: How far the step is that is under way: a step within the step has no hooks of its own.
        self.stage = NOT_STEPPING
        #: Why the last step was torch's own; None if it ran on the kernels.
        self.fallback_reason: str | None = None
        self.has_warned = False
        self.has_warned_of_stalling = False
        #: Whether parameters have averages, or may have been exchanged with them.
        self.has_averages = False
        #: Whose rank's share of the parameters this is, None where it is all of them.
        self.sharded_by: str | None = None
        #: The process group that ``norm_group`` names.
        self.norm_group: Any = None
        #: Who exchanged what with whom for the norm of the last step.
        self.norm_plan: NormPlan | None = None
        #: Which ranks have failed in the last step, where a device knows and the host does not yet.
        self.told_later: ToldLater | None = None
        #: What was assigned to ``_step_supports_amp_scaling``, None for nothing.
        self.supports_amp_scaling: bool | None = None
        #: Whether a state may have another dtype than its parameter.
        self.has_dtypes = False
        self._decoding: dict[int, AbstractContextManager[Any]] = {}
        #: The state dict that is being loaded, None while none is.
        self.loading: dict[str, Any] | None = None

    def decoding(self) -> AbstractContextManager[Any]:
        """What is held while a state dict is made that has floats in the place of codes. A forked
        process has one of its own: the thread that holds another one is not in it."""
        return self._decoding.setdefault(os.getpid(), threading.RLock())

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle keeps: options, findings, whose share. Of the process group a
        copy has the same, and a pickle none."""
        return {
            **{name: getattr(self.options, name) for name in _SAVED},
            "sharded_by": self.sharded_by,
            "has_dtypes": self.has_dtypes,
            "norm_group": _InThisProcess(self.norm_group),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        OwnState.__init__(self)
        self.restore(saved)

    def restore(self, saved: dict[str, Any]) -> None:
        self.sharded_by = saved.get("sharded_by")
        self.has_dtypes = saved.get("has_dtypes", False)
        self.norm_group = saved["norm_group"].value if "norm_group" in saved else None
        for name in saved.keys() - {"sharded_by", "has_dtypes", "norm_group"}:
            setattr(self.options, name, saved[name])
        self.has_options = self.options.any
        self.has_averages = self.options.ema_decay is not None


class OwnStateOf:
    """The class attribute that gives each optimizer its own, however it came to its class: by the
    constructor, unpickled, by ``object.__new__``, or by assigning to ``__class__``.

    Wrappers of the optimizer's class that hold no groups of their own get none: their
    ``__getattr__`` asks the optimizer, whose own is meant.
    """

    @overload
    def __get__(self, optimizer: None, owner: type) -> "OwnStateOf": ...
    @overload
    def __get__(self, optimizer: object, owner: type) -> OwnState: ...
    def __get__(self, optimizer: object | None, owner: type) -> "OwnState | OwnStateOf":
        if optimizer is None:
            return self
        if "param_groups" not in optimizer.__dict__:
            raise AttributeError("_fused")
        own: OwnState = optimizer.__dict__.setdefault("_fused", OwnState())
        return own
