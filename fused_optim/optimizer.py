"""The mixin that gives a torch.optim class its fused step.

The names of ``torch.optim.optimizer`` can be imported from here as well.
"""

import contextlib
import inspect
import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import *  # noqa: F403
from torch.optim.optimizer import Optimizer, ParamsT

from fused_optim import _C
from fused_optim._extension import RULES
from fused_optim.step_options import StepOption, at_least_0, between_0_and_1, yes_or_no
from fused_optim.torch_step import torch_step

__all__ = ["FusedOptimizer", "Optimizer", "ParamsT"]

_log = logging.getLogger("fused_optim")

#: The fused class for each torch.optim class, filled as the fused classes are defined.
FUSED_CLASSES: dict[type[Optimizer], type["FusedOptimizer"]] = {}

if TYPE_CHECKING:
    _Base = Optimizer
else:
    _Base = object


def _unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step beneath the wrapper that runs the hooks, which each torch optimizer's
    constructor puts around its class's step."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


class _EmaParameters(_C.ExchangeContext, contextlib.ContextDecorator):
    """The context manager that :meth:`FusedOptimizer.ema_parameters` returns."""

    def __init__(self, optimizer: "FusedOptimizer", exchange: _C.Exchange) -> None:
        super().__init__(optimizer._name, exchange)
        self.find_pairs = optimizer._find_averages


class FusedOptimizer(_Base):
    r"""Mixin: one fused pass over memory for all parameters of all groups.

    A fused optimizer is ``class Adam(FusedOptimizer, torch.optim.Adam, rule="Adam")``. The torch
    class brings signature, checks, defaults and checkpoints; the mixin brings :meth:`step`.

    The kernels take float32, float64, bfloat16, float16, complex64 and complex128 parameters of
    any dense layout. What they don't take (sparse gradients, tensor subclasses, parameters that
    are not dense in memory, ``differentiable=True``) goes through the torch class's own step,
    as does all of an optimizer constructed with ``fused=False`` or ``foreach=True``.

    Each fused optimizer takes four keyword arguments beyond its torch class's. They combine with
    each other, with AMP and with CUDA graphs, hold for all groups and devices, and are attributes
    that may be changed between steps. They are not in ``param_groups``: checkpoints stay torch's.

    Args:
        max_grad_norm (float, at least 0): clips the gradients by their 2-norm over all groups,

            .. math:: g_t \leftarrow g_t \cdot \min\big(1, \; c / (\lVert g_t \rVert + 10^{-6})\big)

            as :func:`torch.nn.utils.clip_grad_norm_` does, but on their way into the update: the
            ``grad`` tensors are left as they are. With AMP it is the unscaled gradients' norm
            (default: None, no clipping). :attr:`grad_norm` is the norm before clipping.
        skip_nonfinite (bool): a step whose gradients hold an Inf or a NaN changes nothing, decided
            where the gradients are. :attr:`skipped_steps` counts them.
        zero_grads (bool): gradients are zeroed by the pass that reads them, in place, as
            ``zero_grad(set_to_none=False)`` would after the step; also if the step is skipped.
        ema_decay (float in [0, 1]): keeps an average of each parameter in ``state[p]["ema"]``,

            .. math:: \bar\theta_t \leftarrow d \, \bar\theta_{t-1} + (1 - d) \, \theta_t

            of its shape and dtype, which begins as the parameter after the first step: equal to
            :class:`torch.optim.swa_utils.AveragedModel` with ``get_ema_multi_avg_fn(d)``, updated
            after each step that is not skipped (default: None). See :meth:`ema_parameters`.

    Raises:
        ValueError: for arguments out of range or NaN.
    """

    #: GradScaler then leaves the gradients as they are and passes scale and overflow to step().
    _step_supports_amp_scaling = True

    _rule: ClassVar[int]
    #: How errors name the optimizer: a subclass of a user's has its fused class's.
    _name: ClassVar[str]
    _torch_step: ClassVar[Callable[..., Any]]
    _torch_class: ClassVar[type[Optimizer]]
    #: Whether a subclass has an ``_init_group`` of its own, which torch's step asks.
    _prepares_groups: ClassVar[bool] = False
    #: Why the last step was torch's own, None if it ran on the kernels.
    _fallback_reason: str | None = None
    #: The four below and what steps found; None where none of them was ever asked for.
    _step_options: _C.StepOptions | None = None
    #: Between parameters and averages, made by the first step or context.
    _exchange: _C.Exchange | None = None

    max_grad_norm = StepOption(at_least_0)
    skip_nonfinite = StepOption(yes_or_no)
    zero_grads = StepOption(yes_or_no)
    ema_decay = StepOption(between_0_and_1)

    def __init__(
        self,
        *args: Any,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if max_grad_norm is not None:
            self.max_grad_norm = max_grad_norm
        if skip_nonfinite is not False:
            self.skip_nonfinite = skip_nonfinite
        if zero_grads is not False:
            self.zero_grads = zero_grads
        if ema_decay is not None:
            self.ema_decay = ema_decay

    def __init_subclass__(cls, rule: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if rule is None:  # a user's subclass of a fused optimizer
            before_torchs = itertools.takewhile(
                lambda base: base is not cls._torch_class, cls.__mro__
            )
            cls._prepares_groups = any("_init_group" in vars(base) for base in before_torchs)
            return
        torch_class = next(
            base
            for base in cls.__mro__
            if issubclass(base, Optimizer) and not issubclass(base, FusedOptimizer)
        )
        cls._rule = RULES[rule]
        cls._name = cls.__name__
        cls._torch_step = staticmethod(_unhooked(torch_class.step))
        cls._torch_class = torch_class
        cls._take_signature_of(torch_class)
        FUSED_CLASSES[torch_class] = cls

    @classmethod
    def _take_signature_of(cls, torch_class: type[Optimizer]) -> None:
        """Gives the class a constructor that shows torch's arguments, and then the four."""

        def __init__(self: FusedOptimizer, *args: Any, **kwargs: Any) -> None:
            FusedOptimizer.__init__(self, *args, **kwargs)

        own = inspect.signature(FusedOptimizer.__init__).parameters.values()
        torchs = inspect.signature(torch_class.__init__)
        parameters = [
            *torchs.parameters.values(),
            *(parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY),
        ]
        __init__.__signature__ = torchs.replace(parameters=parameters)  # type: ignore[attr-defined]
        __init__.__qualname__ = f"{cls.__name__}.__init__"
        cls.__init__ = __init__  # type: ignore[method-assign]

    @property
    def grad_norm(self) -> Tensor | None:
        """With ``max_grad_norm``: the norm of the last step's gradients before clipping, float64 of
        no dimensions on the first gradient's device. None before the first step."""
        return None if self._step_options is None else self._step_options.grad_norm

    @property
    def skipped_steps(self) -> Tensor:
        """How many steps ``skip_nonfinite`` has skipped, and AMP beside it: int64 of no dimensions
        on the first gradient's device."""
        counted = None if self._step_options is None else self._step_options.skipped_steps
        return torch.zeros((), dtype=torch.int64) if counted is None else counted

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs a single optimization step.

        Args:
            closure (Callable, optional): reevaluates the model and returns the loss.

        Returns:
            The closure's loss, None without a closure.

        Raises:
            RuntimeError: if a gradient or state tensor does not fit its parameter. The message
                names group, parameter and tensor; parameters and state are left as they were.
        """
        if not torch.compiler.is_compiling():
            return self._step(closure)
        if self._step_options is None:
            return self._torch_step(self, closure)
        return self._untraced_step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        if self._exchange is None:
            self._exchange = _C.Exchange()
        elif self._exchange.is_active:
            raise RuntimeError("step() inside ema_parameters(): the averages would be trained")
        defaults = self.defaults
        if "capturable" in defaults and torch.cuda.is_initialized():
            # CUDA graphs are for optimizers whose groups say capturable=True: torch's own check.
            self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # The constructor's flags, not the groups': a checkpoint overwrites those.
        if (
            defaults.get("foreach")
            or defaults.get("fused") is False
            or defaults.get("differentiable")
        ):
            self._fallback_reason = "foreach=True, fused=False or differentiable=True was asked for"
            with self._exchange:
                torch_step(self, default_implementation=False)
            return loss
        reason: str | None = "an _init_group of its own prepares torch's step"
        if not self._prepares_groups and "_init_group" not in self.__dict__:
            reason = _C.step(
                self._rule,
                self._name,
                self.param_groups,
                self.state,
                getattr(self, "grad_scale", None),
                getattr(self, "found_inf", None),
                self._step_options,
                self._exchange,
            )
        if reason != self._fallback_reason:
            self._fallback_reason = reason
            _log.debug("%s steps with %s", type(self).__name__, reason or "the fused kernels")
        if reason is not None:
            with self._exchange:
                torch_step(self, default_implementation=True)
        return loss

    @torch._disable_dynamo
    def _untraced_step(self, closure: Callable[[], Any] | None) -> Any:
        return self._step(closure)

    def ema_parameters(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the parameters hold their averages, for evaluation; afterwards, also after an
        exception, their own values again.

        Values are exchanged in place, so that views, graphs and other modules see them: meanwhile
        ``state[p]["ema"]`` holds the parameter's value. Parameters that have not been stepped yet
        are their own averages. All pairs are checked before the first is exchanged, and no signal
        (Ctrl-C) comes between them.

        Raises:
            RuntimeError: on entering, with nothing changed: if there are no averages and
                ``ema_decay`` asks for none; inside another such context; or, naming group and
                parameter, if an average does not fit its parameter (shape, dtype, device), can't
                be written, or shares memory with another one or a parameter. On leaving, naming
                the parameters, if some could not be given their values back; all others have them.
        """
        if self._exchange is None:
            self._exchange = _C.Exchange()
        return _EmaParameters(self, self._exchange)

    def _find_averages(self) -> list[tuple[int, int, Tensor, Any]]:
        found = {
            p: (number, index, p, self.state[p]["ema"])
            for number, group in enumerate(self.param_groups)
            for index, p in enumerate(group["params"])
            if "ema" in self.state.get(p, {})
        }
        if not found and self.ema_decay is None:
            raise RuntimeError("ema_parameters(): the optimizer was not given an ema_decay")
        return list(found.values())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if self._step_options is not None:
            names = (name for name in dir(_C.StepOptions) if not name.startswith("_"))
            state["_step_options"] = {name: getattr(self._step_options, name) for name in names}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = state.get("_step_options")
        super().__setstate__({k: v for k, v in state.items() if k != "_step_options"})
        if options is not None:
            self._step_options = _C.StepOptions()
            for name, value in options.items():
                setattr(self._step_options, name, value)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's state, as torch does but for one dtype.

        States of one element, such as NAdam's ``mu_product``, keep the dtype that they were saved
        in. torch gives them the parameter's: with bfloat16 parameters, a run that is continued
        would go on with 8 bits of them.

        Args:
            state_dict (dict): what :meth:`state_dict` returned, here or in torch.
        """
        super().load_state_dict(state_dict)
        saved_ids = itertools.chain(*(group["params"] for group in state_dict["param_groups"]))
        params = itertools.chain(*(group["params"] for group in self.param_groups))
        for (saved_id, param), name in itertools.product(
            zip(saved_ids, params, strict=False), _C.scalar_states(self._rule)
        ):
            saved = state_dict["state"].get(saved_id, {}).get(name)
            loaded = self.state.get(param, {}).get(name)
            if not isinstance(saved, torch.Tensor) or not isinstance(loaded, torch.Tensor):
                continue
            if not saved.is_floating_point() or saved.is_meta or saved.dtype == loaded.dtype:
                continue
            if torch.equal(saved.to(loaded), loaded):  # not replaced by a hook
                self.state[param][name] = saved.to(loaded.device, copy=True)
