"""Compact formats in state dicts, where they are floats, and back."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_optim import _C
from fused_optim.compact import (
    REMAINDER,
    asked_dtype,
    is_coded,
    may_be_coded,
    moments_of,
    option_of,
    with_local,
)
from fused_optim.sharding import are_placed_alike, is_dtensor, local_of, state_like
from fused_optim.torch_checks import places_of_params

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["encode_as_asked", "remainder_as_kept", "will_be_coded", "with_decoded_states"]

#: Units of float32's last place in one of a remainder's: masters of 24 bits end with 8 zeros.
_UNITS = {torch.int16: 1, torch.int8: 256}


def with_decoded_states(optimizer: "FusedOptimizer", state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with float32 tensors in the place of codes and their scales."""
    places = dict(enumerate(places_of_params(optimizer)))
    decoded = {
        # As it is now: a step in another thread may replace codes and scales.
        key: _decoded(optimizer, places[key], dict(state))
        if isinstance(state, dict) and key in places
        else state
        for key, state in state_dict["state"].items()
    }
    return {**state_dict, "state": decoded}


def _decoded(
    optimizer: "FusedOptimizer", of_param: tuple[Any, Any, Tensor], state: dict[str, Any]
) -> dict[str, Any]:
    place, _, param = of_param
    floats = {}
    for name in moments_of(optimizer):
        if not is_coded(state.get(name)):
            continue
        scales = state.get(_C.scales_name(name))
        if not isinstance(scales, Tensor):
            place.fail(_C.scales_name(name), "is missing from the state")
        floats[name] = with_local(param, place, name, _C.decode, state[name], scales)
    remainder: Any = state.get(REMAINDER)
    if isinstance(remainder, Tensor) and remainder.dtype in (torch.int16, torch.int8):
        # As a float, which holds it exactly: no backend has collectives of int16, by which a
        # checkpoint may be gathered, and some gatherers take one dtype for all states.
        floats[REMAINDER] = with_local(param, place, REMAINDER, _as_float, remainder)
    beside = {_C.scales_name(name) for name in moments_of(optimizer)}
    return {name: floats.get(name, value) for name, value in state.items() if name not in beside}


def _as_float(remainder: Tensor) -> Tensor:
    """In units of float32's last place, however many bits the master has. By way of the host, as
    codes go."""
    if remainder.is_meta:
        return remainder.detach().to(torch.float32)
    if not _C.is_readable(remainder):
        raise ValueError("it is no plain tensor, or not within its storage")
    values = remainder.detach().cpu().to(torch.float32)
    return values.mul_(_UNITS[remainder.dtype]).to(remainder.device)


def remainder_as_kept(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, saved: Any
) -> Tensor | None:
    """The remainder of a state dict as an optimizer has it; None for one in bfloat16, which torch's
    class has made of it and which is of a parameter before torch's steps. What is none stays as it
    is, for the step to name."""
    if saved.dtype == torch.bfloat16:
        return None
    bits = 24 if option_of(optimizer, group, "master_bits") == 24 else 32
    kept = _C.remainder_of(local_of(saved), bits)
    if kept is None:
        return saved
    kept = kept.to(param.device)
    return state_like(saved, kept) if is_dtensor(saved) else kept


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
    codes, scales = _C.encode(local, moments_of(optimizer)[name])
    state[name] = state_like(param, codes) if is_dtensor(param) else codes
    state[_C.scales_name(name)] = scales


def will_be_coded(
    optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, name: str, saved: object
) -> bool:
    """Whether a state is to be in codes once it is loaded: floats that fit their parameter.

    Args:
        group (dict): the parameter's, as it is once it is loaded.
    """
    if name not in moments_of(optimizer) or not isinstance(saved, Tensor):
        return False
    if asked_dtype(optimizer, group, name) != torch.int8:
        return False
    if saved.layout != torch.strided or not saved.is_floating_point():
        return False
    if not all(_C.is_readable(local_of(tensor)) for tensor in (saved, param)):
        return False
    if saved.shape != param.shape or is_dtensor(saved) != is_dtensor(param):
        return False
    if local_of(saved).shape != local_of(param).shape:
        return False
    if group.get(_C.exact_with(optimizer._rule).get(name, "")):
        return False
    fits = not is_dtensor(param) or are_placed_alike(param, saved)
    return fits and may_be_coded(param)
