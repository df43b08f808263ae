"""States in the dtype of their parameter while torch's own step runs, which knows no other."""

import collections
import operator
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fused_optim.sharding import is_dtensor
from fused_optim.state_dtype import (
    check_group_dtypes,
    for_param,
    names_like_param,
    wanted_dtype,
)
from fused_optim.torch_checks import places_of_params

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["StatesForTorch"]

_PLAIN = (Tensor, torch.nn.Parameter)


class _State(NamedTuple):
    """A state that torch's step would not take as it is."""

    states: dict[str, Any]
    name: str
    own: Tensor
    dtype: torch.dtype  # that torch's step takes
    after: torch.dtype  # that it has when the step is done


class StatesForTorch:
    """The context of a step of torch's.

    Inside, states that are narrower than their parameter have its dtype, exactly; afterwards theirs
    again, rounded, if ``is_done`` was set, else as they were. States that torch makes get the dtype
    that is asked for. States that a checkpoint brought and that are wider than their parameter
    become what torch's ``load_state_dict`` makes of them.

    Raises:
        RuntimeError: before anything has changed, naming group, parameter and state: for a
            ``state_dtype`` that is none, or that torch's step can't have.
    """

    def __init__(self, optimizer: "FusedOptimizer") -> None:
        self.optimizer = optimizer
        self.is_done = False
        check_group_dtypes(optimizer)
        self._states = _find_states(optimizer)

    def __enter__(self) -> "StatesForTorch":
        # One tensor that is the state of several parameters stays one.
        inside: dict[int, Tensor] = {}
        for state in self._states:
            if id(state.own) not in inside:
                inside[id(state.own)] = state.own.detach().to(state.after).to(state.dtype)
        self._inside = [inside[id(state.own)] for state in self._states]
        self._put(self._inside)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outside = [state.own for state in self._states]
        try:
            if self.is_done:
                outside = self._stored()
        finally:
            self._put(outside)
        if self.is_done:
            _convert_new_states(self.optimizer)

    def _put(self, tensors: list[Tensor]) -> None:
        """In one call into C, as a signal handler (Ctrl-C) could run between two."""
        states, names = [s.states for s in self._states], [s.name for s in self._states]
        collections.deque(map(operator.setitem, states, names, tensors), maxlen=0)

    @torch.no_grad()
    def _stored(self) -> list[Tensor]:
        stored = []
        for state, inside in zip(self._states, self._inside, strict=True):
            if state.own.dtype == state.after:
                state.own.detach().copy_(inside)
                stored.append(state.own)
            else:
                stored.append(inside.to(state.after))
        return stored


def _find_states(optimizer: "FusedOptimizer") -> list[_State]:
    names = names_like_param(optimizer._rule)
    found: list[_State] = []
    for place, group, param in _places_of_stepped(optimizer):
        states = optimizer.state.get(param)
        for name in names:
            wanted = _dtype_for_torch(place, optimizer, group, param, name)
            own: Any = states.get(name) if isinstance(states, dict) else None
            if not _has_convertible(param, own):
                continue
            after = own.dtype if wanted is None else wanted
            if own.dtype == after == param.dtype:
                continue
            if torch.promote_types(after, param.dtype) != param.dtype:
                # Adagrad's step takes wider ones; double no load of ours leaves beside others.
                if isinstance(optimizer, torch.optim.Adagrad) or own.dtype == torch.float64:
                    continue
                after = param.dtype
            assert isinstance(states, dict)
            found.append(_State(states, name, own, param.dtype, after))
    return found


def _has_convertible(param: Tensor, state: Any) -> bool:
    if not all(type(tensor) in _PLAIN or is_dtensor(tensor) for tensor in (param, state)):
        return False
    if state.layout != torch.strided or state.is_complex() != param.is_complex():
        return False
    return bool(state.is_floating_point() or state.is_complex())


def _places_of_stepped(
    optimizer: "FusedOptimizer",
) -> Iterable[tuple[str, dict[str, Any], Tensor]]:
    """Each parameter that has a gradient, with its place as errors begin and its group."""
    for place, group, param in places_of_params(optimizer):
        if param.grad is not None:
            yield place.text(), group, param


def _dtype_for_torch(
    place: str, optimizer: "FusedOptimizer", group: dict[str, Any], param: Tensor, name: str
) -> torch.dtype | None:
    """The dtype that is asked for, which torch's step must be able to have."""
    wanted = wanted_dtype(optimizer, group, name)
    if wanted is None:
        return None
    if wanted == torch.int8:  # of a small tensor: others are refused
        wanted = torch.float32
    dtype = for_param(param, wanted)
    if dtype is None:
        raise RuntimeError(
            f"{place}'{name}' can't have dtype {wanted}, as its parameter is complex. "
            "Nothing was changed."
        )
    if torch.promote_types(dtype, param.dtype) != param.dtype:
        raise RuntimeError(
            f"{place}'{name}' is to have dtype {wanted}, but the step is torch's own, which has no "
            f"states beyond the parameter's {param.dtype}. Nothing was changed."
        )
    return dtype


def _convert_new_states(optimizer: "FusedOptimizer") -> None:
    for place, group, param in _places_of_stepped(optimizer):
        states = optimizer.state.get(param, {})
        for name in names_like_param(optimizer._rule):
            wanted = _dtype_for_torch(place, optimizer, group, param, name)
            state = states.get(name)
            if wanted is not None and _has_convertible(param, state) and state.dtype != wanted:
                states[name] = state.to(wanted)
