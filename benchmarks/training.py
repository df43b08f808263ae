"""What surrounds a step in training: clipping before it, zeroing and averaging after it, and what
forward and backward leave in the caches: nothing of the optimizer's."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.kept import Kept, bytes_of

#: The views: the step alone; clipping, step and zero_grad; the same with an average.
STEP, TRAINING, AVERAGING = "step", "clip + step + zero_grad", "clip + step + zero_grad + average"
#: And the step alone, out of memory.
COLD = "cold step"
VIEWS = [STEP, TRAINING, AVERAGING, COLD]
#: The views whose functions around the step are torch's, or part of ours.
SURROUNDED = [TRAINING, AVERAGING]

#: What is written between cold steps: more than the last level of cache that a core or a GPU has.
COLD_BYTES = 96_000_000

MAX_NORM, DECAY = 1.0, 0.999


def extra_bytes(view: str, kept: Kept) -> int:
    """Bytes an element that are moved besides the step's: the norm reads the gradient, zeroing
    writes it, averaging reads and writes the average."""
    of_gradient = 2 * bytes_of(kept.dtype) if view in SURROUNDED else 0
    return of_gradient + (2 * kept.average_bytes if view == AVERAGING else 0)


@functools.cache
def _elsewhere(device: str) -> torch.Tensor:
    return torch.zeros(COLD_BYTES // 4, device=device)


def empty_caches(device: str) -> None:
    """Fills them with other memory. It is read, too: a write alone may go past the caches."""
    _elsewhere(device).add_(1)


def in_one_call(optimizer: Any, view: str) -> Callable[[], object]:
    """fused_optim's way: the step does it all."""
    optimizer.max_grad_norm = MAX_NORM
    optimizer.zero_grads = True
    optimizer.ema_decay = DECAY if view == AVERAGING else None
    return lambda: optimizer.step()


def in_torchs_calls(optimizer: Any, view: str, params: list[torch.Tensor]) -> Callable[[], object]:
    """Everyone else's way: torch's functions around the step."""

    def train() -> None:
        clip_grad_norm_(params, MAX_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    if view == TRAINING:
        return train
    model = torch.nn.ParameterList(params)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def train_and_average() -> None:
        train()
        averaged.update_parameters(model)

    return train_and_average
