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
from fused_optim.sharding import are_placed_alike, is_dtensor, local_of, placed_as
from fused_optim.tensor_memory import is_expanded, reaches_beyond

if TYPE_CHECKING:
    from fused_optim.optimizer import FusedOptimizer

__all__ = [
    "check_for_torch",
    "check_placement",
    "places_of_params",
    "rehearse_for_torch",
]

_PLAIN = (Tensor, torch.nn.Parameter)


class _Place(NamedTuple):
    """A parameter as errors speak of it."""

    optimizer: str
    group: int
    param: int

    def text(self) -> str:
        return f"fused_optim.{self.optimizer}: group {self.group}, parameter {self.param}: "

    def fail(self, name: str, what: str) -> None:
        raise RuntimeError(f"{self.text()}'{name}' {what}")


def check_for_torch(optimizer: "FusedOptimizer") -> None:
    """Checks gradients, states and averages for torch's step, changing nothing.

    Args:
        optimizer: whose step is about to be done.

    Raises:
        RuntimeError: that names group, parameter and tensor, where a state is missing, is no
            tensor, can't be written, or where a state or gradient is of another shape or on another
            device than its parameter.
    """
    for place, group, param in places_of_params(optimizer):
        state = optimizer.state.get(param) or {}
        if optimizer._fused.options.ema_decay is not None and "ema" in state:
            _check_average(place, param, state)
        if param.grad is None:
            continue
        _check_gradient(place, param, param.grad)
        states = _states_of(optimizer, group)
        for name, is_scalar in states.items() if state else ():
            # torch makes all states at once where it keeps a step
            if "step" in states and state.get(name) is None:
                place.fail(name, "is missing from the state")
            _check_state(place, param, state, name, is_scalar)


def rehearse_for_torch(optimizer: "FusedOptimizer", reset_flags: tuple[str, ...]) -> None:
    """Asks torch whether its step takes gradients and states of these dtypes and layouts, and what
    the groups say.

    Args:
        optimizer: whose step is about to be done.
        reset_flags: names of the groups' flags that it will find at None.

    Raises:
        Exception: what torch's step raises.
    """
    if optimizer._prepares_groups or "_init_group" in vars(optimizer):
        return  # it would call the user's code
    # Those that are off, too: torch takes some values that are no numbers for on.
    states = {name: is_scalar for name, _, is_scalar in _C.states(optimizer._rule)}
    rehearsed: set[tuple[object, ...]] = set()
    for place, group, param in places_of_params(optimizer):
        if param.grad is None:
            continue
        state = optimizer.state.get(param) or {}
        known = {name: value for name, value in state.items() if name in states}
        kind = (place.group, *_kind_of(param, known))
        if kind in rehearsed:
            continue
        if _is_unusual(param, known, states, group) or _has_unusual_values(optimizer, group):
            rehearsed.add(kind)
            _rehearse(place, optimizer, group, param, known, reset_flags)


def places_of_params(
    optimizer: "FusedOptimizer",
) -> Iterator[tuple[_Place, dict[str, Any], Tensor]]:
    """Each parameter with its place and its group."""
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            yield _Place(optimizer._name, number, index), group, param


def _states_of(optimizer: "FusedOptimizer", group: dict[str, Any]) -> dict[str, bool]:
    """Whether it has one element, by the name of each state that is on."""
    return {
        name: is_scalar
        for name, enabled_by, is_scalar in _C.states(optimizer._rule)
        if enabled_by is None or group.get(enabled_by)
    }


def _check_average(place: _Place, param: Tensor, state: dict[str, Any]) -> None:
    if not isinstance(state["ema"], Tensor):
        place.fail("ema", f"is no tensor but {type(state['ema']).__name__}")
    _check_state(place, param, state, "ema", False)
    _check_writable(place, param, "param")
    if state["ema"].layout != param.layout:
        place.fail("ema", f"has layout {state['ema'].layout}, the parameter {param.layout}")
    dtype = state["ema"].dtype
    is_number = dtype.is_complex or dtype.is_floating_point
    if dtype.is_complex != param.dtype.is_complex or not is_number:
        place.fail("ema", f"has dtype {dtype}, the parameter {param.dtype}")


def _check_gradient(place: _Place, param: Tensor, grad: Tensor) -> None:
    _check_writable(place, param, "param")
    _check_memory(place, grad, "grad")
    if is_dtensor(grad) != is_dtensor(param):
        place.fail("grad", _mixed(param))
    if grad.is_meta != param.is_meta or (grad.dim() > 0 and grad.device != param.device):
        place.fail("grad", f"is on {grad.device}, the parameter on {param.device}")
    if grad.shape == param.shape:
        return
    try:
        fits = torch.broadcast_shapes(grad.shape, param.shape) == param.shape
    except RuntimeError:
        fits = False
    if not fits:
        place.fail("grad", f"has shape {list(grad.shape)}, the parameter {list(param.shape)}")


def check_placement(place: _Place, param: Tensor, value: Tensor, name: str) -> None:
    """Both are DTensors that are placed alike, or none is.

    Raises:
        RuntimeError: that names the place.
    """
    if is_dtensor(value) != is_dtensor(param):
        place.fail(name, _mixed(param))
    if is_dtensor(param) and not are_placed_alike(param, value):
        place.fail(name, f"is placed as {placed_as(value)}, the parameter as {placed_as(param)}")


def _mixed(param: Tensor) -> str:
    if is_dtensor(param):
        return f"is no DTensor, the parameter is placed as {placed_as(param)}"
    return "is a DTensor, the parameter is none"


def _check_writable(place: _Place, tensor: Tensor, name: str) -> None:
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        place.fail(name, "is an inference tensor, which can't be written outside InferenceMode")
    _check_memory(place, tensor, name)
    if is_expanded(tensor):
        place.fail(name, "is expanded: several of its elements are one place in memory")


def _check_memory(place: _Place, tensor: Tensor, name: str) -> None:
    if reaches_beyond(tensor):
        place.fail(name, "reaches beyond its storage")


def _check_state(
    place: _Place, param: Tensor, state: dict[str, Any], name: str, is_scalar: bool
) -> None:
    value = state.get(name)
    if value is None:
        return
    if not isinstance(value, Tensor):
        if not is_scalar:
            place.fail(name, f"is no tensor but {type(value).__name__}")
        return
    _check_writable(place, value, name)
    if is_scalar:
        if value.numel() != 1:
            place.fail(name, f"has shape {list(value.shape)}, not one element")
        if value.is_meta and not param.is_meta:
            place.fail(name, f"is on {value.device}, the parameter on {param.device}")
        is_on_host = type(value) in _PLAIN and value.is_cpu and torch._C._has_storage(value)
        if name == "step" and is_on_host and not float(value) >= 0:
            place.fail(name, f"is {float(value)}, not a count of steps")
        return
    check_placement(place, param, value, name)
    for own, of_param in ((value, param), (local_of(value), local_of(param))):
        if own.shape != of_param.shape:
            place.fail(name, f"has shape {list(own.shape)}, the parameter {list(of_param.shape)}")
    if value.device != param.device:
        place.fail(name, f"is on {value.device}, the parameter on {param.device}")


def _operands(param: Tensor, state: dict[str, Any]) -> Iterator[Tensor]:
    assert param.grad is not None
    yield param
    yield param.grad
    yield from (value for value in state.values() if isinstance(value, Tensor))


def _kind_of(param: Tensor, state: dict[str, Any]) -> tuple[object, ...]:
    names = tuple(state)
    return names, *((x.dtype, x.layout, x.dim() == 0) for x in _operands(param, state))


def _is_unusual(
    param: Tensor, state: dict[str, Any], states: dict[str, bool], group: dict[str, Any]
) -> bool:
    """Whether torch would not have made them so. Of subclasses nobody knows what they take."""
    if type(param) not in _PLAIN:
        return False
    if group.get("capturable"):  # refused on some devices
        return True
    scalars = [s for name, s in state.items() if states[name]]
    if not all(isinstance(s, Tensor) for s in scalars):
        return True
    if any(s.layout != torch.strided or not s.dtype.is_floating_point or s.dim() for s in scalars):
        return True
    like_param = {name: value for name, value in state.items() if not states[name]}
    return any(
        x.layout != torch.strided or x.dtype != param.dtype for x in _operands(param, like_param)
    )


def _has_unusual_values(optimizer: "FusedOptimizer", group: dict[str, Any]) -> bool:
    """Whether the group says other things than numbers where the constructor takes them."""
    return not all(
        _is_usual(group.get(name), default) for name, default in optimizer.defaults.items()
    )


def _is_usual(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        alike = isinstance(value, (tuple, list)) and len(value) == len(default)
        return alike and all(map(_is_usual, value, default))
    if default is None or isinstance(default, bool):
        return value is None or isinstance(value, bool)
    # Of other tensors than plain ones nobody knows beside what they can be.
    return isinstance(value, (int, float)) or (
        isinstance(value, Tensor) and type(value) not in _PLAIN
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
        if value.dim() == 0 or value.numel() == 1:
            return value.detach().clone()
        tiny = torch.zeros(shape, dtype=value.dtype, device=value.device)
        return tiny if value.layout == torch.strided else tiny.to_sparse(layout=value.layout)

    tiny = like(param)
    _C.set_grads([tiny], [like(param.grad)])  # of any dtype
    flags = {name: None for name in reset_flags if name in group}
    shadow: Any = object.__new__(type(optimizer))
    # AMP's scale is not for torch: its step gets gradients without one.
    amp = ("grad_scale", "found_inf")
    shadow.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k not in amp})
    shadow.defaults = {**optimizer.defaults, "differentiable": False}
    shadow.param_groups = [{**group, **flags, "differentiable": False, "params": [tiny]}]
    shadow.state = defaultdict(dict)
    if state:
        shadow.state[tiny] = {name: like(value) for name, value in state.items()}
    try:
        optimizer._torch_step(shadow)
    except Exception as error:
        if param.grad is not None and param.grad.layout != torch.strided:
            raise  # in torch's words alone, which code looks for
        raise _named(error, place) from error


def _named(error: Exception, place: _Place) -> Exception:
    """The error with the parameter's place in its text, of the same type where that can be."""
    text = f"{place.text()}{error}"
    try:
        return type(error)(text)
    except Exception:  # whose constructor wants something else
        return RuntimeError(text)
