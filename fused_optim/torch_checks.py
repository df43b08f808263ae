"""What torch's own step would trip over half way is found before it starts.

Its for-loop updates one parameter after the other, and group after group: a state that does not
fit would be noticed when what comes before it has been stepped.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fused_optim import _C

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = ["check_for_torch"]


class _Place(NamedTuple):
    """A parameter as errors speak of it."""

    optimizer: str
    group: int
    param: int

    def text(self) -> str:
        return f"fused_optim.{self.optimizer}: group {self.group}, parameter {self.param}: "

    def fail(self, name: str, what: str) -> None:
        raise RuntimeError(f"{self.text()}'{name}' {what}")


def check_for_torch(optimizer: "FusedOptimizer", reset_flags: tuple[str, ...]) -> None:
    """Checks gradients and state for torch's step, changing nothing.

    Args:
        optimizer: whose step is about to be done.
        reset_flags: names of the groups' flags that it will find at None.

    Raises:
        RuntimeError: that names group, parameter and tensor, where a state is missing, or is of
            another shape or on another device than its parameter.
        Exception: what torch's step raises for gradients and states of these dtypes and layouts.
    """
    for number, group in enumerate(optimizer.param_groups):
        states = [
            (name, is_scalar)
            for name, enabled_by, is_scalar in _C.states(optimizer._rule)
            if enabled_by is None or group.get(enabled_by)
        ]
        rehearsed: set[tuple[object, ...]] = set()
        for index, param in enumerate(group["params"]):
            if param.grad is None:
                continue
            place = _Place(optimizer._name, number, index)
            state = optimizer.state.get(param) or {}
            for name, is_scalar in states if state else ():
                _check_state(place, param, state, name, is_scalar)
            kind = _kind_of(param, state)
            if kind not in rehearsed and not _is_uniform(param, state):
                rehearsed.add(kind)
                _rehearse(place, optimizer, group, param, state, reset_flags)


def _check_state(
    place: _Place, param: Tensor, state: dict[str, Any], name: str, is_scalar: bool
) -> None:
    value = state.get(name)
    if value is None:
        if "step" in state:  # torch makes all states at once where it keeps a step
            place.fail(name, "is missing from the state")
        return
    if is_scalar or not isinstance(value, Tensor):
        return
    if value.shape != param.shape:
        place.fail(name, f"has shape {list(value.shape)}, the parameter {list(param.shape)}")
    if value.device != param.device:
        place.fail(name, f"is on {value.device}, the parameter on {param.device}")


def _operands(param: Tensor, state: dict[str, Any]) -> Iterator[Tensor]:
    assert param.grad is not None
    yield param
    yield param.grad
    yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim() > 0)


def _kind_of(param: Tensor, state: dict[str, Any]) -> tuple[object, ...]:
    names = tuple(state)
    return names, *((x.dtype, x.layout) for x in _operands(param, state))


def _is_uniform(param: Tensor, state: dict[str, Any]) -> bool:
    """Whether all are as torch makes them; of subclasses nobody knows what they take."""
    if type(param) not in (Tensor, torch.nn.Parameter):
        return True
    return all(
        x.dtype == param.dtype and x.layout == torch.strided for x in _operands(param, state)
    )


def _rehearse(
    place: _Place,
    optimizer: "FusedOptimizer",
    group: dict[str, Any],
    param: Tensor,
    state: dict[str, Any],
    reset_flags: tuple[str, ...],
) -> None:
    """Does torch's step on one element of the same dtypes, devices and layouts."""
    shape = [1] * param.dim()

    def like(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() == 0:
            return value.detach().clone()
        tiny = torch.zeros(shape, dtype=value.dtype, device=value.device)
        return tiny.to_sparse() if value.layout == torch.sparse_coo else tiny

    tiny = like(param)
    _C.set_grads([tiny], [like(param.grad)])  # of any dtype
    flags = {name: None for name in reset_flags if name in group}
    shadow: Any = object.__new__(type(optimizer))
    shadow.__dict__.update(optimizer.__dict__)
    shadow.defaults = {**optimizer.defaults, "differentiable": False}
    shadow.param_groups = [{**group, **flags, "differentiable": False, "params": [tiny]}]
    shadow.state = defaultdict(dict)
    if state:
        shadow.state[tiny] = {name: like(value) for name, value in state.items()}
    try:
        optimizer._torch_step(shadow)
    except Exception as error:
        if param.grad.layout != torch.strided:
            raise  # in torch's words alone, which code looks for
        raise type(error)(f"{place.text()}{error}") from error
