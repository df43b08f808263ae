"""How tensors are kept: the dtype of parameters and gradients, and what of ours has fewer bytes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fused_optim.compact import FEWEST_IN_CODES

#: What parameters, gradients and states are made of.
DTYPES = ["float32", "bfloat16", "float16", "float64"]
#: What our states alone can be made of, whatever the parameters are.
STATE_DTYPES = ["float32", "bfloat16", "int8"]
#: A state in 8 bits has a float32 scale for each block of 128 elements.
CODED_BYTES = 1 + 4 / 128


def bytes_of(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


@dataclass(frozen=True)
class Kept:
    """How tensors are kept. Of all implementations ours alone is asked for more than a dtype."""

    dtype: str = "float32"
    state_dtype: str | None = None
    master_bits: int | None = None
    stochastic_rounding: bool = False

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "Kept":
        """From a result's file. Older ones say less: no dtype where all was float32."""
        return cls(**{name: row[name] for name in asdict(cls()) if name in row})

    @property
    def name(self) -> str:
        """What tables call it."""
        parts = [self.dtype]
        if self.master_bits is not None:
            parts.append(f"master {self.master_bits}")
        if self.state_dtype is not None:
            parts.append(f"states {self.state_dtype}")
        if self.stochastic_rounding:
            parts.append("stochastic")
        return ", ".join(parts)

    @property
    def options(self) -> dict[str, Any]:
        """Our classes' keyword arguments."""
        options: dict[str, Any] = {}
        if self.state_dtype is not None:
            options["state_dtype"] = getattr(torch, self.state_dtype)
        if self.master_bits is not None:
            options["master_bits"] = self.master_bits
        if self.stochastic_rounding:
            options["stochastic_rounding"] = True
        return options

    @property
    def without_options(self) -> "Kept":
        """How all others keep them."""
        return Kept(self.dtype)

    @property
    def remainder_bytes(self) -> int:
        """What a bfloat16 parameter lacks of its master."""
        return 0 if self.master_bits is None else (self.master_bits - 16) // 8

    @property
    def average_bytes(self) -> int:
        """With masters, averages are float32."""
        return 4 if self.master_bits is not None else bytes_of(self.dtype)

    def state_bytes(self, elements: int) -> float:
        """Bytes an element of one state, of a tensor with so many elements."""
        if self.state_dtype == "int8":
            return CODED_BYTES if elements >= FEWEST_IN_CODES else 4
        if self.state_dtype is not None:
            return bytes_of(self.state_dtype)
        return 4 if self.master_bits is not None else bytes_of(self.dtype)


#: As torch keeps them unless it is told otherwise.
FLOAT32 = Kept()

#: The combinations that the documentation speaks of: with a master or float32 parameters, from most
#: bytes to fewest; without one; and the one whose small updates are lost, bfloat16 alone.
FORMATS = [
    FLOAT32,
    Kept("bfloat16", None, 32),
    Kept("float32", "bfloat16", None, True),
    Kept("bfloat16", "bfloat16", 32, True),
    Kept("float32", "int8"),
    Kept("bfloat16", "int8", 24, True),
    Kept("bfloat16", None, None, True),
    Kept("bfloat16"),
]
