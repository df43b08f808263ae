"""Parameters and states in fewer bytes: ``master_bits``, ``stochastic_rounding``, 8-bit states."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.sharding import are_placed_alike, is_dtensor, local_of, state_like

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "GROUP_OPTIONS",
    "CompactOption",
    "a_seed",
    "begin_in_float32",
    "check_compact_options",
    "encode_as_asked",
    "is_coded",
    "master_parameters",
    "refuse_compact",
    "tensor_as_kept",
    "warn_of_stalling",
    "will_be_coded",
    "with_decoded_states",
]

#: The name of what lies beside a parameter that has a master.
REMAINDER = "remainder"

#: Smaller tensors, counted over all ranks, keep their states in float32.
FEWEST_IN_CODES = 4096


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


def is_coded(state: object) -> bool:
    """Whether it is a state in 8-bit codes."""
    return isinstance(state, Tensor) and state.dtype in (torch.int8, torch.uint8)


def _moments(optimizer: "FusedOptimizer") -> dict[str, bool]:
    """The states that can be in codes, and whether those have signs."""
    return dict(_C.moments(optimizer._rule))


def begin_in_float32(optimizer: "FusedOptimizer") -> None:
    """Gives parameters with masters the states that constructors make, Adagrad's sums, in float32:
    rounded to bfloat16, they would begin as another number."""
    for group in optimizer.param_groups:
        if not option_of(optimizer, group, "master_bits"):
            continue
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            if param.dtype == torch.bfloat16 and "sum" in state:
                first = group["initial_accumulator_value"]
                state["sum"] = torch.full_like(param.detach(), first, dtype=torch.float32)


def master_parameters(optimizer: "FusedOptimizer") -> Iterator[Tensor]:
    """See :meth:`FusedOptimizer.master_parameters`."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            remainder = optimizer.state.get(param, {}).get(REMAINDER)
            if remainder is None or param.dtype != torch.bfloat16:
                yield param.detach().to(torch.float32)
                continue
            joined = _C.joined(local_of(param.detach()), local_of(remainder))
            yield state_like(param, joined) if is_dtensor(param) else joined


def with_decoded_states(optimizer: "FusedOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with float32 tensors in the place of codes and their scales."""
    params = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    decoded = {
        key: _decoded(optimizer, params.get(key), state) if isinstance(state, dict) else state
        for key, state in state_dict["state"].items()
    }
    return {**state_dict, "state": decoded}


def _decoded(optimizer: "FusedOptimizer", param: Any, state: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in _moments(optimizer) if is_coded(state.get(name))]
    floats = {}
    for name in names:
        codes, scales = state[name], state.get(_C.scales_name(name))
        if not isinstance(scales, Tensor):
            raise RuntimeError(
                f"fused_optim.{optimizer._name}: {name!r} is in codes, but "
                f"{_C.scales_name(name)!r} is missing from the state"
            )
        values = _C.decode(local_of(codes), local_of(scales))
        floats[name] = state_like(param, values) if is_dtensor(codes) else values
    remainder: Any = state.get(REMAINDER)
    if is_dtensor(remainder) and remainder.dtype == torch.int16:
        # Neither gloo nor NCCL has collectives of int16, by which a checkpoint may be gathered.
        floats[REMAINDER] = state_like(param, local_of(remainder).to(torch.int32))
    beside = {_C.scales_name(name) for name in _moments(optimizer)}
    return {name: floats.get(name, value) for name, value in state.items() if name not in beside}


def tensor_as_kept(saved: Tensor, device: torch.device) -> Tensor:
    """Codes or a remainder of a state dict as an optimizer has them, a copy."""
    dtype = torch.int16 if saved.dtype == torch.int32 else saved.dtype
    return saved.to(device, dtype, copy=True)


def encode_as_asked(
    optimizer: "FusedOptimizer", param: Any, name: str, values: Tensor, state: dict[str, Any]
) -> None:
    """Puts a state that was loaded, one that :func:`will_be_coded`, into codes.

    Args:
        values (Tensor): on the parameter's device.
        state (dict): the parameter's, which gets codes and scales.
    """
    local = torch.empty_like(local_of(param.detach()), dtype=torch.float32)
    local.copy_(local_of(values))  # in the parameter's memory order
    codes, scales = _C.encode(local, _moments(optimizer)[name])
    state[name] = state_like(param, codes) if is_dtensor(param) else codes
    state[_C.scales_name(name)] = scales


def will_be_coded(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, name: str, saved: object
) -> bool:
    """Whether a state is to be in codes once it is loaded: floats that fit their parameter."""
    if name not in _moments(optimizer) or not isinstance(saved, Tensor) or saved.is_meta:
        return False
    asked = group.get("state_dtype", optimizer.state_dtype)
    if (asked.get(name) if isinstance(asked, dict) else asked) != torch.int8:
        return False
    if saved.layout != torch.strided or not saved.is_floating_point():
        return False
    if saved.shape != param.shape or is_dtensor(saved) != is_dtensor(param):
        return False
    fits = not is_dtensor(param) or are_placed_alike(param, saved)
    return fits and may_be_coded(param)


def may_be_coded(param: Tensor) -> bool:
    """Whether states of this parameter may be in codes where that is asked for."""
    is_computed_in_float = param.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return is_computed_in_float and param.numel() >= FEWEST_IN_CODES


def refuse_compact(optimizer: "FusedOptimizer") -> None:
    """Throws where torch's own step would have to keep what it knows nothing of.

    Raises:
        RuntimeError: that names group and parameter. Nothing has been changed.
    """
    if not optimizer._fused.options.has_compact:
        return
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            state = optimizer.state.get(param, {})
            what = None if param.grad is None else _compact_of(optimizer, group, param, state)
            if what is not None:
                raise RuntimeError(
                    f"fused_optim.{optimizer._name}: group {number}, parameter {index}: {what}, "
                    f"but the step is torch's own, which can't: "
                    f"{optimizer._fused.fallback_reason}. Nothing was changed."
                )


def _compact_of(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, state: dict[str, Any]
) -> str | None:
    """What its step would have to keep in fewer bytes, or None."""
    if REMAINDER in state or (
        param.dtype == torch.bfloat16 and option_of(optimizer, group, "master_bits")
    ):
        return "master_bits asks for a master"
    if param.dtype == torch.bfloat16 and option_of(optimizer, group, "stochastic_rounding"):
        return "stochastic_rounding is asked for"
    asked = group.get("state_dtype", optimizer.state_dtype)
    for name in _moments(optimizer):
        of_state = asked.get(name) if isinstance(asked, dict) else asked
        if is_coded(state.get(name)) or (of_state == torch.int8 and may_be_coded(param)):
            return f"{name!r} is to be in 8 bits"
    return None


def warn_of_stalling(optimizer: "FusedOptimizer") -> None:
    """Warns, once for each optimizer, of second moments that are asked for in bfloat16 and would
    stand still: rounded to nearest, a moving average doesn't move by less than half its unit in the
    last place, a 512th."""
    fused = optimizer._fused
    if fused.has_warned_of_stalling:
        return
    for number, group in enumerate(optimizer.param_groups):
        asked = group.get("state_dtype", optimizer.state_dtype)
        if option_of(optimizer, group, "stochastic_rounding"):
            continue
        for name, is_signed in _moments(optimizer).items():
            of_state = asked.get(name) if isinstance(asked, dict) else asked
            decay = _decay_of(group)
            if of_state == torch.bfloat16 and not is_signed and decay > 0.99:
                fused.has_warned_of_stalling = True
                warnings.warn(
                    f"fused_optim.{optimizer._name}: group {number}: {name!r} in bfloat16 decays "
                    f"by {decay} a step, less than bfloat16 can tell, and stands still once "
                    "gradients shrink: give stochastic_rounding=True beside state_dtype",
                    stacklevel=4,
                )
                return


def _decay_of(group: dict[str, Any]) -> float:
    """Of the second moment; 1 where it is a sum."""
    if "betas" in group:
        return float(group["betas"][1])
    return float(group.get("alpha", group.get("rho", 1.0)))
