"""What a fused class takes from its torch class: the bare step, and the constructor's signature."""

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["check_graph_capture", "constructor_like", "unhooked"]

#: torch's check that a step in a CUDA graph was made for it, by its name since 2.11 or before.
check_graph_capture: Callable[[Optimizer], None] = (
    getattr(Optimizer, "_accelerator_graph_capture_health_check", None)
    or Optimizer._cuda_graph_capture_health_check
)


def unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step beneath the wrapper that runs the hooks, which each torch optimizer's
    constructor puts around its class's step."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def constructor_like(torch_class: type, mixin: type, name: str) -> Callable[..., None]:
    """A constructor that calls the mixin's, and shows torch's arguments and then the mixin's own.

    Args:
        torch_class: whose arguments come first.
        mixin: whose keyword-only arguments follow.
        name: of the class that gets the constructor.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        mixin.__init__(self, *args, **kwargs)  # type: ignore[misc]

    own = inspect.signature(mixin.__init__).parameters.values()  # type: ignore[misc]
    torchs = inspect.signature(torch_class.__init__)  # type: ignore[misc]
    parameters = [
        *torchs.parameters.values(),
        *(parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY),
    ]
    __init__.__signature__ = torchs.replace(parameters=parameters)  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{name}.__init__"
    return __init__
