"""Two models that train in seconds, on data that are on every machine: nothing is downloaded.

Their weight matrices have 4,096 elements and more, so that states in 8 bits are in 8 bits.
"""

import functools
import pathlib
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Sources of Python's standard library: what the language model reads, and what it is judged by.
SOURCES = ["argparse.py", "ast.py", "difflib.py", "doctest.py", "inspect.py", "tarfile.py"]
UNSEEN = "subprocess.py"
CHARACTERS, CONTEXT, WIDTH = 128, 64, 64


@dataclass(frozen=True)
class Task:
    """A model to train, and how well it is trained."""

    name: str
    make_model: Callable[[], nn.Module]
    #: Inputs and targets of a step.
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    #: Those of the loss that counts in the end.
    judged: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    #: The largest learning rate for each optimizer.
    rates: dict[str, float]


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # an extra, which the other model doesn't need

    digits = load_digits()
    return torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def _digits_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, labels = _digits()
    rows = torch.randint(1500, (64,), generator=generator)
    return images[rows], labels[rows]


def _digits_model() -> nn.Module:
    hidden = [nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU()) for _ in range(2)]
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), *hidden, nn.Linear(128, 10))


def _all_digits() -> tuple[Tensor, Tensor]:
    """Those that are trained on: on the few others the loss says more of chance."""
    images, labels = _digits()
    return images[:1500], labels[:1500]


@functools.cache
def _characters(*names: str) -> Tensor:
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    return torch.tensor([min(ord(character), CHARACTERS - 1) for character in text])


def _windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def _text_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    text = _characters(*SOURCES)
    return _windows(text, torch.randint(len(text) - CONTEXT, (8,), generator=generator))


def _unseen_text() -> tuple[Tensor, Tensor]:
    text = _characters(UNSEEN)
    return _windows(text, torch.arange(0, len(text) - CONTEXT, len(text) // 256))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention(self.norms[0](x)).unflatten(-1, (3, 4, WIDTH // 4))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.wide(self.norms[1](x))


class _Gpt(nn.Module):
    """Two layers, character by character."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        nn.init.normal_(self.characters.weight, std=0.02)
        self.layers = nn.Sequential(_Block(), _Block(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.layers(self.characters(text) + self.places))


TASKS = [
    Task(
        "digits", _digits_model, _digits_batch, _all_digits, 150,
        {"AdamW": 1e-3, "SGD+momentum": 1e-2, "RMSprop": 5e-4, "Lion": 6e-4},
    ),
    Task(
        "characters", _Gpt, _text_batch, _unseen_text, 240,
        {"AdamW": 3e-3, "SGD+momentum": 3e-2, "RMSprop": 1e-3, "Lion": 1.5e-3},
    ),
]  # fmt: skip


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
