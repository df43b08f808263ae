"""Handwritten digits, trained twice: with torch.optim and with fused_optim.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn ships; nothing is downloaded.
Both runs start from the same weights and see the same batches, so the losses are the same.
"""

import argparse
import time
import types

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fused_optim

EPOCHS = 10
BATCH = 64


def load() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    return images, torch.tensor(digits.target)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU()) for _ in range(2)]
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), *hidden, nn.Linear(128, 10))


def train(optim: types.ModuleType, name: str) -> tuple[list[float], float, float]:
    """Returns the mean loss of each epoch, the accuracy on the last 297 images, and the
    seconds spent in step()."""
    images, labels = load()
    model = make_model()
    optimizer = getattr(optim, name)(model.parameters(), lr=1e-3)
    losses, in_step = [], 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        total = 0.0
        order = torch.randperm(1500, generator=generator)
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            start = time.perf_counter()
            optimizer.step()
            in_step += time.perf_counter() - start
            total += loss.item() * len(batch)
        losses.append(total / 1500)
    with torch.no_grad():
        accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    return losses, accuracy, in_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="AdamW", help="a class of both (default: AdamW)")
    name = parser.parse_args().optimizer
    theirs, their_accuracy, their_time = train(torch.optim, name)
    ours, our_accuracy, our_time = train(fused_optim, name)
    print(f"{name} on 1,500 digits, {EPOCHS} epochs\n")
    print("epoch   torch.optim   fused_optim")
    for epoch, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1):
        print(f"{epoch:5}   {a:11.6f}   {b:11.6f}")
    print(f"\naccuracy on 297 others: {their_accuracy:.1%} and {our_accuracy:.1%}")
    print(f"time in step(): {their_time:.3f} s and {our_time:.3f} s")


if __name__ == "__main__":
    main()
