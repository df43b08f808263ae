"""Handwritten digits on several processes, each of which holds a part of every parameter.

    torchrun --nproc-per-node 2 examples/train_sharded.py
    torchrun --nproc-per-node 1 examples/train_sharded.py --resume --epochs 15

The model of digits.py under fully_shard: parameters, gradients and states are DTensors, and the
step runs on the fused kernels. It clips by the norm of the whole gradients, which takes one
exchange of a few numbers. A checkpoint is written after the last epoch; --resume continues from it,
on any number of processes. On GPUs if there are any, else on CPUs.
"""

import argparse
import os
import pathlib

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from digits import BATCH, MAX_NORM, load, make_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import fused_optim


def start() -> torch.device:
    """Joins the other processes; the device that this one computes on."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    return device


def make_sharded(device: torch.device) -> nn.Module:
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    model = make_model().to(device)
    for layer in model:
        if isinstance(layer, nn.Sequential):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save(
    folder: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    """Each process writes its own part."""
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder / f"{epoch}")


def restore(folder: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Each process reads what it needs, whoever wrote it. Returns the epochs that are done."""
    epoch = max(int(path.name) for path in folder.iterdir())
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    dcp.load(state, checkpoint_id=folder / f"{epoch}")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return epoch


def train_epoch(
    epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """Returns the mean loss. The batches are the same on any number of processes, which share each
    of them out."""
    images, labels = load()
    total = torch.zeros((), device=device)
    generator = torch.Generator().manual_seed(epoch)
    for batch in torch.randperm(1500, generator=generator).split(BATCH):
        part = batch[dist.get_rank() :: dist.get_world_size()]
        loss = F.cross_entropy(model(images[part].to(device)), labels[part].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach() * len(part)
    dist.all_reduce(total)
    return total.item() / 1500


@torch.no_grad()
def accuracy(model: nn.Module, device: torch.device) -> float:
    """Of the last 297 images."""
    images, labels = load()
    guesses = model(images[1500:].to(device)).argmax(1)
    return (guesses == labels[1500:].to(device)).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10, help="in all (default: 10)")
    parser.add_argument("--resume", action="store_true", help="continue from the last one")
    parser.add_argument(
        "--checkpoints", type=pathlib.Path, default=pathlib.Path("digits_checkpoints"),
        metavar="FOLDER", help="where they are (default: digits_checkpoints)",
    )  # fmt: skip
    options = parser.parse_args()
    device = start()
    is_first = dist.get_rank() == 0
    model = make_sharded(device)
    optimizer = fused_optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=MAX_NORM)
    done = restore(options.checkpoints, model, optimizer) if options.resume else 0
    if is_first:
        print(f"AdamW on 1,500 digits, processes: {dist.get_world_size()}, {device.type}\n")
        print("epoch       loss   gradient norm")
    for epoch in range(done + 1, options.epochs + 1):
        loss = train_epoch(epoch, model, optimizer, device)
        if is_first:  # the norm is the same on all
            print(f"{epoch:5}   {loss:8.6f}   {optimizer.grad_norm.item():13.6f}", flush=True)
    if done < options.epochs:
        save(options.checkpoints, model, optimizer, options.epochs)
    found = accuracy(model, device)
    if is_first:
        print(f"\naccuracy on 297 others: {found:.1%}")
        print(f"fallback_reason: {optimizer.fallback_reason}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
