"""Parameters and states in fewer bytes: ``master_bits``, ``stochastic_rounding``, 8-bit states."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.sharding import is_dtensor, local_of, state_like
from fused_optim.torch_checks import places_of_params

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "FEWEST_IN_CODES",
    "GROUP_OPTIONS",
    "REMAINDER",
    "CompactOption",
    "a_seed",
    "asked_dtype",
    "asks_for_compact",
    "begin_in_float32",
    "check_compact_options",
    "has_compact",
    "is_coded",
    "master_parameters",
    "may_be_coded",
    "moments_of",
    "option_of",
    "refuse_compact",
    "warn_of_stalling",
    "with_local",
]

#: The name of what lies beside a parameter that has a master.
REMAINDER = "remainder"

#: Smaller tensors, counted over all ranks, keep their states in float32.
FEWEST_IN_CODES = _C.FEWEST_IN_CODES

_COMPUTED_IN_FLOAT = (torch.float32, torch.bfloat16, torch.float16)

_HAS_MASTER = "master_bits asks for a master"


def _bits_or_none(name: str, value: Any) -> int | None:
    if value is None or (type(value) is int and value in (24, 32)):
        return value
    raise ValueError(f"Invalid {name} value: {value}, not None, 32 or 24")


def _true_or_false(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    raise ValueError(f"Invalid {name} value: {value}, not True or False")


def a_seed(name: str, value: Any) -> int:
    """A number of 64 bits, or ValueError."""
    if type(value) is int and 0 <= value < 2**64:
        return value
    raise ValueError(f"Invalid {name} value: {value}, not an int of 0 to 2**64 - 1")


#: Options that a group may have as well, with their checks.
GROUP_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "master_bits": _bits_or_none,
    "stochastic_rounding": _true_or_false,
}


class CompactOption:
    """The attribute of an optimizer, kept where the extension reads it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: "FusedOptimizer | None", owner: type | None = None) -> Any:
        return self if optimizer is None else getattr(optimizer._fused.options, self.name)

    def __set__(self, optimizer: "FusedOptimizer", value: Any) -> None:
        value = GROUP_OPTIONS[self.name](self.name, value)
        setattr(optimizer._fused.options, self.name, value)
        if value:
            optimizer._fused.options.has_compact = True
        begin_in_float32(optimizer)


def asks_for_compact(optimizer: "FusedOptimizer") -> bool:
    """Whether an option asks for compact formats, or may do so in a group, where it may have been
    written by hand."""
    if optimizer._fused.options.has_compact:
        return True
    names = ("state_dtype", *GROUP_OPTIONS)
    return any(name in group for group in optimizer.param_groups for name in names)


def has_compact(optimizer: "FusedOptimizer") -> bool:
    """The same, or whether a state is in one, as where it was taken from another optimizer."""
    if asks_for_compact(optimizer):
        return True
    # Lists, as a step in another thread may add to either.
    states = [state for state in list(optimizer.state.values()) if isinstance(state, dict)]
    return any(REMAINDER in state or any(map(is_coded, list(state.values()))) for state in states)


def check_compact_options(optimizer: "FusedOptimizer", group: dict[str, Any]) -> None:
    """Checks what a new group says of them.

    Raises:
        ValueError: for what an option can't be.
    """
    for name, check in GROUP_OPTIONS.items():
        if name in group and check(name, group[name]):
            optimizer._fused.options.has_compact = True


def option_of(optimizer: "FusedOptimizer", group: dict[str, Any], name: str) -> Any:
    """What holds for a group."""
    return group.get(name, getattr(optimizer, name))


def asked_dtype(
    optimizer: "FusedOptimizer", group: dict[str, Any], name: str
) -> torch.dtype | None:
    """What ``state_dtype`` says of a state, for this group."""
    asked = option_of(optimizer, group, "state_dtype")
    found: torch.dtype | None = asked.get(name) if isinstance(asked, dict) else asked
    return found


def is_coded(state: object) -> bool:
    """Whether it is a state in 8-bit codes."""
    return isinstance(state, Tensor) and state.dtype in (torch.int8, torch.uint8)


def moments_of(optimizer: "FusedOptimizer") -> dict[str, bool]:
    """The states that can be in codes, and whether those have signs."""
    return dict(_C.moments(optimizer._rule))


def begin_in_float32(optimizer: "FusedOptimizer") -> None:
    """Gives parameters with masters the states that constructors make, Adagrad's sums, in float32:
    rounded to bfloat16, they would begin as another number."""
    if not optimizer._fused.options.has_compact:
        return
    for group in optimizer.__dict__.get("param_groups", ()):
        if not option_of(optimizer, group, "master_bits"):
            continue
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            if param.dtype == torch.bfloat16 and _has_begun_as(group, state):
                first = group["initial_accumulator_value"]
                state["sum"] = torch.full_like(param.detach(), first, dtype=torch.float32)


def _has_begun_as(group: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether it is as Adagrad's constructor makes it, its sum rounded as its parameter is."""
    total, step = (local_of(state.get(name)) for name in ("sum", "step"))
    for tensor in (total, step):
        if not isinstance(tensor, Tensor) or not _C.is_readable(tensor):
            return False
    if step.numel() != 1 or step != 0 or total.dtype != torch.bfloat16:
        return False
    return torch.equal(total, torch.full_like(total, group["initial_accumulator_value"]))


def master_parameters(optimizer: "FusedOptimizer") -> Iterator[Tensor]:
    """See :meth:`FusedOptimizer.master_parameters`."""
    # Parameters that hold their averages are no masters rounded.
    is_averaged = optimizer._fused.exchange.is_active
    for place, _, param in places_of_params(optimizer):
        remainder = optimizer.state.get(param, {}).get(REMAINDER)
        if param.is_complex():
            yield param.detach()
        elif remainder is None or param.dtype != torch.bfloat16 or is_averaged or param.is_meta:
            yield param.detach().to(torch.float32)
        else:
            yield with_local(param, place, REMAINDER, _C.joined, param.detach(), remainder)


def with_local(
    param: Any, place: Any, name: str, make: Callable[..., Tensor], *tensors: Any
) -> Tensor:
    """What ``make`` makes of two tensors, of DTensors of this rank's parts, as a state of the
    parameter. Its errors name the place."""
    try:
        made = make(*map(local_of, tensors))
    except (ValueError, TypeError, RuntimeError) as error:
        raise RuntimeError(f"{place.text()}{name!r} does not fit: {error}") from error
    return state_like(param, made) if is_dtensor(param) else made


def may_be_coded(param: Tensor) -> bool:
    """Whether states of this parameter may be in codes where that is asked for."""
    return param.dtype in _COMPUTED_IN_FLOAT and param.numel() >= FEWEST_IN_CODES


def _stays_in_float32(param: Tensor) -> bool:
    """Whether its states are to be in float32 where codes are asked for."""
    return param.dtype in _COMPUTED_IN_FLOAT and param.numel() < FEWEST_IN_CODES


def refuse_compact(optimizer: "FusedOptimizer") -> None:
    """Throws where torch's own step would have to keep what it knows nothing of.

    Raises:
        RuntimeError: that names group and parameter. Nothing has been changed.
    """
    if not has_compact(optimizer):
        return
    has_averages = optimizer._fused.options.ema_decay is not None
    for place, group, param in places_of_params(optimizer):
        state = optimizer.state.get(param, {})
        what = None
        if param.grad is not None:
            what = _compact_of(optimizer, group, param, state)
        elif has_averages and "ema" in state and REMAINDER in state:
            what = _HAS_MASTER
        if what is not None:
            raise RuntimeError(
                f"{place.text()}{what}, but the step is torch's own, which can't: "
                f"{optimizer._fused.fallback_reason}. Nothing was changed."
            )


def _compact_of(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, state: dict[str, Any]
) -> str | None:
    """What its step would have to keep in fewer bytes, or None."""
    rule = optimizer._rule
    if REMAINDER in state or (
        param.dtype == torch.bfloat16 and option_of(optimizer, group, "master_bits")
    ):
        return _HAS_MASTER
    if option_of(optimizer, group, "stochastic_rounding"):
        stalling = (_kept_dtype(optimizer, group, state, n) for n in _C.second_moments(rule))
        if torch.bfloat16 in (param.dtype, *stalling):
            return "stochastic_rounding is asked for"
    for name in moments_of(optimizer):
        asked = asked_dtype(optimizer, group, name)
        if is_coded(state.get(name)) or (asked == torch.int8 and not _stays_in_float32(param)):
            return f"{name!r} is to be in 8 bits"
    return None


def _kept_dtype(
    optimizer: "FusedOptimizer", group: dict[str, Any], state: dict[str, Any], name: str
) -> torch.dtype | None:
    """The dtype of a state after a step: what is asked for, else its own."""
    return asked_dtype(optimizer, group, name) or getattr(state.get(name), "dtype", None)


def warn_of_stalling(optimizer: "FusedOptimizer") -> None:
    """Warns, once for each optimizer, of second moments that are asked for in bfloat16 and would
    stand still: rounded to nearest, a moving average doesn't move by less than half its unit in the
    last place, a 512th."""
    fused = optimizer._fused
    if fused.has_warned_of_stalling:
        return
    for number, group in enumerate(optimizer.param_groups):
        if option_of(optimizer, group, "stochastic_rounding") or _decay_of(group) <= 0.99:
            continue
        for name, is_signed in moments_of(optimizer).items():
            if asked_dtype(optimizer, group, name) == torch.bfloat16 and not is_signed:
                fused.has_warned_of_stalling = True
                warnings.warn(
                    f"fused_optim.{optimizer._name}: group {number}: {name!r} in bfloat16 moves by "
                    "less in a step than bfloat16 can tell, and stands still once gradients "
                    "shrink: give stochastic_rounding=True beside state_dtype",
                    stacklevel=4,
                )
                return


def _decay_of(group: dict[str, Any]) -> float:
    """Of the second moment; 1 where it is a sum."""
    if "betas" in group:
        return float(group["betas"][1])
    return float(group.get("alpha", group.get("rho", 1.0)))
