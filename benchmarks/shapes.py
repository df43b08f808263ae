"""``python -m benchmarks shapes script.py:factory``: a workload from a user's own model."""

import argparse
import json
import pathlib
import runpy
from collections.abc import Iterable
from typing import Any

import torch


def groups_of(made: Any) -> list[list[list[int]]]:
    """Shapes by parameter group of a module, an optimizer, parameter groups or parameters."""
    if isinstance(made, torch.optim.Optimizer):
        made = made.param_groups
    elif isinstance(made, torch.nn.Module):
        made = made.parameters()
    if not isinstance(made, Iterable):
        raise TypeError(f"a module, an optimizer or parameters are needed, not {type(made)}")
    items = list(made)
    if items and isinstance(items[0], dict):
        return [[list(p.shape) for p in group["params"]] for group in items]
    return [[list(p.shape) for p in items]]


def to_json(name: str, source: str, groups: list[list[list[int]]]) -> str:
    """The workload as a file that a person can read: a shape a line."""
    parts = [",\n    ".join(json.dumps(shape) for shape in group) for group in groups]
    body = "], [\n    ".join(parts)
    return (
        "{\n"
        f'  "name": {json.dumps(name)},\n'
        f'  "source": {json.dumps(source)},\n'
        f'  "groups": [[\n    {body}\n  ]]\n'
        "}\n"
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks shapes", description=__doc__)
    parser.add_argument("factory", help="script.py:function; it returns a module or an optimizer")
    parser.add_argument("--name", help="of the workload (default: the function's)")
    parser.add_argument("--output", type=pathlib.Path, help="(default: NAME.json)")
    options = parser.parse_args(arguments)
    script, _, function = options.factory.rpartition(":")
    if not script:
        parser.error("say script.py:function")
    factory = runpy.run_path(script)[function]
    with torch.device("meta"):  # shapes only: no memory is needed
        groups = groups_of(factory())
    name = options.name or function
    output = options.output or pathlib.Path(f"{name}.json")
    tensors = sum(map(len, groups))
    output.write_text(to_json(name, f"{pathlib.Path(script).name}:{function}", groups))
    print(f"{output}: {tensors} tensors in {len(groups)} groups")
