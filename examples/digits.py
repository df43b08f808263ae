"""Handwritten digits, trained twice: with torch.optim and with fused_optim.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn ships; nothing is downloaded.
Both runs start from the same weights and see the same batches, so the losses are the same.

With --recipe, both also clip gradients, skip steps whose gradients are not finite, zero the
gradients and average the parameters: torch in five calls, fused_optim inside its step().
"""

import argparse
import contextlib
import time
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fused_optim

EPOCHS = 10
BATCH = 64
MAX_NORM = 1.0
DECAY = 0.99

#: A step with all that belongs to it, and where to find the weights to evaluate.
Recipe = tuple[Callable[[], Any], Callable[[], contextlib.AbstractContextManager[nn.Module]]]


def load() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    return images, torch.tensor(digits.target)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU()) for _ in range(2)]
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), *hidden, nn.Linear(128, 10))


def plain(optim: types.ModuleType, name: str, model: nn.Module) -> Recipe:
    """Step and zero_grad, with either of the two."""
    optimizer = getattr(optim, name)(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: contextlib.nullcontext(model)


def torch_recipe(name: str, model: nn.Module) -> Recipe:
    """Clip, skip, step, zero and average, in torch's calls."""
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def step() -> None:
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        if norm.isfinite():
            optimizer.step()
            averaged.update_parameters(model)
        optimizer.zero_grad(set_to_none=False)

    return step, lambda: contextlib.nullcontext(averaged)


def fused_recipe(name: str, model: nn.Module) -> Recipe:
    """The same inside step()."""
    optimizer = getattr(fused_optim, name)(
        model.parameters(), lr=1e-3,
        max_grad_norm=MAX_NORM, skip_nonfinite=True, zero_grads=True, ema_decay=DECAY,
    )  # fmt: skip

    @contextlib.contextmanager
    def averages() -> Any:
        with optimizer.ema_parameters():
            yield model

    return optimizer.step, averages


def train(model: nn.Module, recipe: Recipe) -> tuple[list[float], float, float]:
    """Returns the mean loss of each epoch, the accuracy on the last 297 images, and the
    seconds spent in the step and what belongs to it."""
    step, weights = recipe
    images, labels = load()
    losses, in_step = [], 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        total = 0.0
        order = torch.randperm(1500, generator=generator)
        for batch in order.split(BATCH):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            start = time.perf_counter()
            step()
            in_step += time.perf_counter() - start
            total += loss.item() * len(batch)
        losses.append(total / 1500)
    with torch.no_grad(), weights() as evaluated:
        accuracy = (evaluated(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    return losses, accuracy, in_step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizer", default="AdamW", help="a class of both (default: AdamW)")
    parser.add_argument(
        "--recipe", action="store_true", help="clip, skip, zero and average as well"
    )
    options = parser.parse_args()
    name = options.optimizer
    runs = []
    for optim, recipe in ((torch.optim, torch_recipe), (fused_optim, fused_recipe)):
        model = make_model()
        chosen = recipe(name, model) if options.recipe else plain(optim, name, model)
        runs.append(train(model, chosen))
    (theirs, their_accuracy, their_time), (ours, our_accuracy, our_time) = runs
    print(f"{name} on 1,500 digits, {EPOCHS} epochs\n")
    print("epoch   torch.optim   fused_optim")
    for epoch, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1):
        print(f"{epoch:5}   {a:11.6f}   {b:11.6f}")
    print(f"\naccuracy on 297 others: {their_accuracy:.1%} and {our_accuracy:.1%}")
    calls = "clipping, step, zeroing and averaging" if options.recipe else "step() and zero_grad()"
    print(f"time in {calls}: {their_time:.3f} s and {our_time:.3f} s")


if __name__ == "__main__":
    main()
