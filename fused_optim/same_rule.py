"""Optimizers of other libraries: which fused class follows the same rule, and which have none."""

from typing import NamedTuple

__all__ = ["advice_for"]


class _Same(NamedTuple):
    """A fused class of the same rule: its states by the other's names, and where it is not."""

    fused: str
    states: dict[str, str]
    unless: str


class _Other(NamedTuple):
    """No fused class has this rule, although one may be called alike."""

    because: str


_LION = {"exp_avg": "exp_avg"}
_KNOWN: dict[str, _Same | _Other] = {
    "timm.optim.lion.Lion": _Same("Lion", _LION, "caution=True or corrected_weight_decay=True"),
    "lion_pytorch.lion_pytorch.Lion": _Same("Lion", _LION, "decoupled_weight_decay=True"),
    "timm.optim.nadamw.NAdamW": _Other("its momentum follows no schedule, as NAdam's does"),
    "timm.optim.rmsprop_tf.RMSpropTF": _Other(
        "it adds epsilon inside the root, and its average begins at 1, unlike RMSprop's"
    ),
    "transformers.optimization.Adafactor": _Other(
        "its second moment is kept as averages of rows and columns"
    ),
    "timm.optim.adafactor.Adafactor": _Other(
        "its second moment is kept as averages of rows and columns"
    ),
}


def advice_for(cls: type) -> str:
    """What to say of a class that has no fused counterpart; nothing where it isn't known."""
    for base in cls.__mro__:
        known = _KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if isinstance(known, _Other):
            return f", and no fused class has its rule: {known.because}"
        if isinstance(known, _Same):
            names = ", ".join(f"'{ours}' from '{its}'" for its, ours in known.states.items())
            return (
                f", but fused_optim.{known.fused} has the same rule (not with {known.unless}): "
                f"construct it, and take its state {names}"
            )
    return ""
