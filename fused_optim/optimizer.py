"""The mixin that gives a torch.optim class its fused step.

The names of ``torch.optim.optimizer`` can be imported from here as well.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.optim.optimizer import *  # noqa: F403
from torch.optim.optimizer import Optimizer, ParamsT

from fused_optim import _C
from fused_optim._extension import RULES

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


class FusedOptimizer(_Base):
    """Mixin: one fused pass over memory for all parameters of all groups.

    A fused optimizer is ``class Adam(FusedOptimizer, torch.optim.Adam, rule="Adam")``. The torch
    class brings signature, checks, defaults and checkpoints; the mixin brings :meth:`step`.

    The kernels take float32, float64, bfloat16, float16, complex64 and complex128 parameters of
    any dense layout. What they don't take (sparse gradients, tensor subclasses, parameters that
    are not dense in memory, ``differentiable=True``) goes through the torch class's own step,
    as does all of an optimizer constructed with ``fused=False`` or ``foreach=True``.
    """

    #: GradScaler then leaves the gradients as they are and passes scale and overflow to step().
    _step_supports_amp_scaling = True

    _rule: ClassVar[int]
    _torch_step: ClassVar[Callable[..., Any]]
    #: Why the last step was torch's own, None if it ran on the kernels.
    _fallback_reason: str | None = None

    def __init_subclass__(cls, rule: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if rule is None:  # a user's subclass of a fused optimizer
            return
        torch_class = next(
            base
            for base in cls.__mro__
            if issubclass(base, Optimizer) and not issubclass(base, FusedOptimizer)
        )
        cls._rule = RULES[rule]
        cls._torch_step = staticmethod(_unhooked(torch_class.step))
        FUSED_CLASSES[torch_class] = cls

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
        if torch.compiler.is_compiling():
            return self._torch_step(self, closure)
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
            with self._amp_for_torch():
                self._torch_step(self)
            return loss
        reason = _C.step(
            self._rule,
            self.param_groups,
            self.state,
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
        )
        if reason != self._fallback_reason:
            self._fallback_reason = reason
            _log.debug("%s steps with %s", type(self).__name__, reason or "the fused kernels")
        if reason is not None:
            with self._amp_for_torch(), self._default_implementation():
                self._torch_step(self)
        return loss

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

    @contextlib.contextmanager
    def _default_implementation(self) -> Iterator[None]:
        """Lets torch choose its implementation: its fused kernels check no layouts."""
        flags = [
            (group, name, group[name])
            for group in self.param_groups
            for name in ("foreach", "fused")
            if name in group
        ]
        try:
            for group, name, _ in flags:
                group[name] = None
            yield
        finally:
            for group, name, value in flags:
                group[name] = value

    @contextlib.contextmanager
    def _amp_for_torch(self) -> Iterator[None]:
        """Does for torch's own step what the kernels do with GradScaler's two attributes."""
        amp = {name: self.__dict__.pop(name, None) for name in ("grad_scale", "found_inf")}
        if amp["grad_scale"] is None and amp["found_inf"] is None:
            yield
            return
        overflow = amp["found_inf"] is not None and float(amp["found_inf"]) != 0
        scale = 1.0 if amp["grad_scale"] is None else float(amp["grad_scale"])
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        try:
            for p, grad in zip(params, grads, strict=True):
                if grad is not None:
                    p.grad = None if overflow else grad / scale
            yield
        finally:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            self.__dict__.update(amp)
