"""The mixin that gives a torch.optim class its fused step.

The names of ``torch.optim.optimizer`` can be imported from here as well.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import *  # noqa: F403
from torch.optim.optimizer import Optimizer, ParamsT

from fused_optim._extension import RULES
from fused_optim.averages import EmaParameters
from fused_optim.checkpoints import (
    all_or_nothing,
    decoded_states,
    keep_saved_dtypes,
    last_load_hook,
)
from fused_optim.compact import (
    CompactOption,
    a_seed,
    begin_in_float32,
    check_compact_options,
    has_compact,
    master_parameters,
    warn_of_stalling,
)
from fused_optim.fallback import COMPILED
from fused_optim.own_state import OwnState, OwnStateOf
from fused_optim.shards import constructed_by, refuse_for_a_shard
from fused_optim.state_dtype import (
    StateDtypeOption,
    asks_for_codes,
    check_group_dtypes,
    check_state_dtype,
    dtype_or_none,
    keep_own_state_dtypes,
)
from fused_optim.step_hooks import hook_step_of, with_hooks
from fused_optim.step_options import (
    NormGroupOption,
    StepOption,
    at_least_0,
    between_0_and_1,
    has_step_options,
    remove_step_options,
    set_options,
    yes_or_no,
)
from fused_optim.stepping import general_fallback, step
from fused_optim.torch_class import constructor_like, unhooked

__all__ = ["FusedOptimizer", "Optimizer", "ParamsT"]

#: The fused class for each torch.optim class, filled as the fused classes are defined.
FUSED_CLASSES: dict[type[Optimizer], type["FusedOptimizer"]] = {}

if TYPE_CHECKING:
    _Base = Optimizer
else:
    _Base = object


class FusedOptimizer(_Base):
    r"""Mixin: one fused pass over memory for all parameters of all groups.

    A fused optimizer is ``class Adam(FusedOptimizer, torch.optim.Adam, rule="Adam")``. The torch
    class brings signature, checks, defaults and checkpoints; the mixin brings :meth:`step`.

    The kernels take float32, float64, bfloat16, float16, complex64 and complex128 parameters of
    any dense layout, of DTensors each rank's part. What they don't take (sparse gradients, other
    tensor subclasses, parameters that are not dense in memory, ``differentiable=True``) goes
    through the torch class's own step, as does all of an optimizer constructed with
    ``fused=False`` or ``foreach=True``.

    Each fused optimizer takes ten keyword arguments beyond its torch class's. They combine with
    each other, with AMP and with CUDA graphs, hold for all groups and devices, and are attributes
    that may be changed between steps. They are not in ``defaults``: checkpoints stay torch's.

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

            of its shape, which begins as the parameter after the first step: equal to
            :class:`torch.optim.swa_utils.AveragedModel` with ``get_ema_multi_avg_fn(d)``, updated
            after each step that is not skipped (default: None). See :meth:`ema_parameters`.
        ema_dtype (torch.float32 or torch.bfloat16): of the averages (default: None, the dtype of
            the parameter). Averages of bfloat16 parameters want float32: a step moves them by less
            than bfloat16 can tell.
        norm_group (ProcessGroup): over whose ranks the norm is taken that ``max_grad_norm`` and
            ``skip_nonfinite`` go by, where the parameters don't say it (default: None). Those that
            are DTensors do: their norm is the whole tensors' on all ranks of their meshes. With a
            group, plain parameters are shards, of which each of its ranks has some (FSDP1,
            ZeroRedundancyOptimizer), and what disjoint meshes (pipeline stages) have is added up.
            All its ranks step together. Copies of the optimizer share it, a pickle has none.
        state_dtype (torch.float32, torch.bfloat16, torch.int8, or a dict by name of a state): the
            dtype of states of the parameter's shape, also a key of a group (default: None, the
            parameter's for new states, and what exists or is loaded stays as it is; but see
            ``master_bits``).
            float32 for bfloat16 or float16 parameters: moments keep 24 bits. bfloat16 for float32
            parameters: AdamW moves 20 bytes an element instead of 28. All is computed in float32
            (float64 for float64 parameters) and rounded to nearest once, when it is stored.
            Assigned later, the next step converts what is there.

            int8: moments in 8-bit codes with a float32 scale, ``state[p][name + "_scales"]``, for
            each block of 128 elements in memory order; AdamW moves 16.1 bytes an element. First
            moments are :math:`c \lvert c \rvert s` of int8 :math:`c`, second ones have 4 bits of
            exponent and 4 of mantissa in uint8. Both are rounded stochastically. Tensors of fewer
            than 4,096 elements, of DTensors on all ranks together, keep float32. State dicts hold
            float32 tensors. States whose dynamics in 8 bits are not those that they have are
            refused: ``max_exp_avg_sq``, ``acc_delta``, ``grad_avg`` and ``square_avg`` with
            ``centered``, and all of Rprop's and ASGD's.
        master_bits (32 or 24): keeps that many bits of a float32 master of each bfloat16 parameter,
            also a key of a group (default: None, the parameter's own 16). The parameter is its
            master rounded to nearest, and ``state[p]["remainder"]`` (int16, or int8) holds the
            rest. With 32 the masters are to the bit those of float32 training; with 24 they are
            rounded to a multiple of 2\ :sup:`8` units in float32's last place. States and averages
            are then float32 unless ``state_dtype`` or ``ema_dtype`` says otherwise. A parameter
            that is changed from outside counts as it is, but for less than a unit in its last place
            from the remainder, which was of another number. See :meth:`master_parameters`.
        stochastic_rounding (bool): rounds up or down at random, so that the mean is exact, what
            rounded to nearest can stand still: bfloat16 parameters without a master, masters of 24
            bits, and second moments in bfloat16; also a key of a group (default: False).
        rounding_seed (int, 0 to 2\ :sup:`64` - 1): of the random bits, which are a hash of it, the
            number of the step, of the parameter in the optimizer and of the element in the
            parameter: the same on every device, for any number of threads, and after a resume. Of
            DTensors sharded in their first dimension also for any mesh (default: 0).

    Raises:
        ValueError: for arguments out of range or NaN.

    Sources: Gupta, Agrawal, Gopalakrishnan and Narayanan, *Deep Learning with Limited Numerical
    Precision*, arXiv:1502.02551 (stochastic rounding); Dettmers, Lewis, Shleifer and Zettlemoyer,
    *8-bit Optimizers via Block-wise Quantization*, arXiv:2110.02861.
    """

    _rule: ClassVar[int]
    #: How errors name the optimizer: a subclass of a user's has its fused class's.
    _name: ClassVar[str]
    _torch_step: ClassVar[Callable[..., Any]]
    _torch_class: ClassVar[type[Optimizer]]
    #: Whether a subclass has an ``_init_group`` of its own, which torch's step asks.
    _prepares_groups: ClassVar[bool] = False
    _fused = OwnStateOf()

    max_grad_norm = StepOption(at_least_0)
    skip_nonfinite = StepOption(yes_or_no)
    zero_grads = StepOption(yes_or_no)
    ema_decay = StepOption(between_0_and_1)
    ema_dtype = StepOption(dtype_or_none)
    norm_group = NormGroupOption()
    state_dtype = StateDtypeOption()
    master_bits = CompactOption()
    stochastic_rounding = CompactOption()
    rounding_seed = StepOption(a_seed)

    def __init__(
        self,
        *args: Any,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        ema_decay: float | None = None,
        ema_dtype: torch.dtype | None = None,
        norm_group: "torch.distributed.ProcessGroup | None" = None,
        state_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        master_bits: int | None = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.__dict__["_fused"] = OwnState()
        self._fused.sharded_by = constructed_by()
        # Before the groups are made, which may not say otherwise.
        if norm_group is not None:
            self.norm_group = norm_group
        if max_grad_norm is not None:
            self.max_grad_norm = max_grad_norm
        if skip_nonfinite is not False:
            self.skip_nonfinite = skip_nonfinite
        if zero_grads is not False:
            self.zero_grads = zero_grads
        if ema_decay is not None:
            self.ema_decay = ema_decay
        if ema_dtype is not None:
            self.ema_dtype = ema_dtype
        if state_dtype is not None:
            self.state_dtype = state_dtype
        if master_bits is not None:
            self.master_bits = master_bits
        if stochastic_rounding is not False:
            self.stochastic_rounding = stochastic_rounding
        if rounding_seed != 0:
            self.rounding_seed = rounding_seed
        super().__init__(*args, **kwargs)
        begin_in_float32(self)

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
        cls._torch_step = staticmethod(unhooked(torch_class.step))
        cls._torch_class = torch_class
        cls.__init__ = constructor_like(torch_class, FusedOptimizer, cls.__name__)  # type: ignore[method-assign]
        FUSED_CLASSES[torch_class] = cls

    @property
    def grad_norm(self) -> Tensor | None:
        """With ``max_grad_norm``: the norm of the last step's gradients before clipping, float64 of
        no dimensions on the first gradient's device. None before the first step."""
        return self._fused.options.grad_norm

    @property
    def skipped_steps(self) -> Tensor:
        """How many steps ``skip_nonfinite`` has skipped, and AMP beside it: int64 of no dimensions
        on the first gradient's device."""
        counted = self._fused.options.skipped_steps
        return torch.zeros((), dtype=torch.int64) if counted is None else counted

    @property
    def fallback_reason(self) -> str | None:
        """Why the last step was torch's own implementation; None if it ran on the kernels, and
        before the first step.

        The first step of an optimizer that goes that way for a reason that its user may not expect
        warns (UserWarning), and with ``FUSED_OPTIM_STRICT=1`` in the environment each of them is a
        RuntimeError. Expected are what was asked for (``foreach=True``, ``fused=False``,
        ``differentiable=True``, ``torch.compile``) and what torch has no kernel for either (sparse
        gradients, the meta device).
        """
        return self._fused.fallback_reason

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves the gradients as they are and passes scale and overflow to
        step(): as in torch only where it was asked for, by ``fused=True`` or a step option."""
        if self._fused.supports_amp_scaling is not None:
            return self._fused.supports_amp_scaling
        # Constructors of torch's that know fused=True don't say so in every version.
        return self._fused.has_options or bool(self.defaults.get("fused"))

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self._fused.supports_amp_scaling = value  # torch's constructors do, for fused=True

    @_step_supports_amp_scaling.deleter
    def _step_supports_amp_scaling(self) -> None:
        self._fused.supports_amp_scaling = None

    @with_hooks
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
            return step(self, closure)
        fused = self._fused
        has_own = fused.has_averages or fused.has_dtypes or has_compact(self)
        if not fused.has_options and not has_own and not has_step_options(self):
            self._fused.fallback_reason = COMPILED.reason
            return self._torch_step(self, closure)
        return self._untraced_step(closure)

    @torch._disable_dynamo
    def _untraced_step(self, closure: Callable[[], Any] | None) -> Any:
        fused = self._fused
        stage_around = fused.stage
        try:
            return step(self, closure)
        finally:
            fused.stage = stage_around

    def _patch_step_function(self) -> None:
        """What torch's constructor and unpickling call, to put hooks around the class's step."""
        hook_step_of(type(self))
        super()._patch_step_function()

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
        refuse_for_a_shard(self, "ema_parameters()")
        self._fused.has_averages = True
        return EmaParameters(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch does.

        Args:
            param_group (dict): ``params`` and what is this group's own.

        Raises:
            ValueError: for step options, which are not a group's but the optimizer's.
        """
        if isinstance(param_group, dict):
            remove_step_options(param_group, self, f"group {len(self.param_groups)}")
            if "state_dtype" in param_group:
                dtypes = check_state_dtype(self._rule, param_group["state_dtype"])
                param_group["state_dtype"] = dtypes
                self._fused.has_dtypes = True
                self._fused.options.has_compact |= asks_for_codes(dtypes)
            check_compact_options(self, param_group)
        super().add_param_group(param_group)
        if self._fused.has_dtypes:
            warn_of_stalling(self)

    def __repr__(self) -> str:
        text = super().__repr__()
        options = set_options(self._fused.options)
        if self._fused.norm_group is not None:
            options["norm_group"] = self._fused.norm_group
        lines = "".join(f"    {name}: {value}\n" for name, value in options.items())
        return f"{text.removesuffix(')')}Step options\n{lines})" if options else text

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_step_options": self._fused.__getstate__()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" not in state:  # load_state_dict, after its hooks; else a copy or a pickle
            for number, group in enumerate(state["param_groups"]):
                remove_step_options(group, self, f"group {number} of the state dict")
            keep_own_state_dtypes(self.param_groups, state["param_groups"])
        super().__setstate__({k: v for k, v in state.items() if k != "_step_options"})
        loading = self._fused.loading
        if loading is not None:  # before the hooks that follow, which have the last word
            keep_saved_dtypes(self, loading, takes_kernels=general_fallback(self) is None)
        if "_step_options" in state:
            self._fused.restore(state["_step_options"])

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state as torch's, which torch.optim loads: states in 8 bits are float32
        tensors, exactly, and what is loaded from them again are the same bits. Beside them stand
        the ``remainder`` of a parameter with a master, and where random bits are used and the rule
        counts no steps, the number of them under ``step``."""
        if not has_compact(self):
            return super().state_dict()
        with decoded_states(self):
            return super().state_dict()

    def master_parameters(self) -> Iterator[Tensor]:
        """Iterates over one float32 tensor for each parameter, in the order of the groups, at any
        time: with ``master_bits`` the number that is trained, of which the parameter is the rounded
        one; else the parameter's own value, of float32 parameters in their own memory. Complex
        parameters come as they are, and inside :meth:`ema_parameters` all do."""
        return master_parameters(self)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's state, as torch does but for dtypes.

        Step options are this optimizer's own: none is loaded, and groups that hold any, as those
        of ZeroRedundancyOptimizer do, must have the same.

        torch gives every state the dtype of its parameter: with bfloat16 parameters, a run that is
        continued would go on with 8 bits of float32 states. Here states keep the dtype that they
        were saved in, or get the one that this optimizer's ``state_dtype`` or ``ema_dtype`` asks
        for. (Double stays what torch makes of it.) Neither keyword is loaded, nor a group's.

        Where it fails, in a hook or a subclass's ``__setstate__``, too, groups and states are those
        that were there.

        Args:
            state_dict (dict): what :meth:`state_dict` returned, here or in torch.
        """
        check_group_dtypes(self)
        with all_or_nothing(self), last_load_hook(self):
            super().load_state_dict(state_dict)
