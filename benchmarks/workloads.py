"""What is stepped: parameter shapes of real models (JSON files) and synthetic ones."""

import json
import math
import pathlib
import random
from dataclasses import dataclass

Shape = tuple[int, ...]
FILES = pathlib.Path(__file__).parent / "workloads"


@dataclass(frozen=True)
class Workload:
    """Parameter shapes, a list for each parameter group."""

    name: str
    groups: list[list[Shape]]

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for group in self.groups for shape in group)

    @property
    def tensors(self) -> int:
        return sum(map(len, self.groups))


def load(path: pathlib.Path) -> Workload:
    """A workload from a JSON file with ``name`` and ``groups``, a list of shapes for each."""
    data = json.loads(path.read_text())
    return Workload(data["name"], [[tuple(s) for s in group] for group in data["groups"]])


def many_groups() -> Workload:
    """465 groups of one tensor, as detection transformers with layer-wise rates have them."""
    generator = random.Random(0)
    sizes = [
        round(math.exp(generator.uniform(math.log(64), math.log(400_000)))) for _ in range(465)
    ]
    return Workload("465 groups", [[(size,)] for size in sizes])


def standard(device: str) -> dict[str, Workload]:
    """The workloads by the names that the command line takes."""
    large = {"1G": Workload("1 x 1G", [[(1_000_000_000,)]])} if device == "cuda" else {}
    return {
        "100x64": Workload("100 x 64", [[(64,)] * 100]),
        "1000x1000": Workload("1000 x 1000", [[(1000,)] * 1000]),
        "3000x3500": Workload("3000 x 3500", [[(3500,)] * 3000]),
        "resnet50": load(FILES / "resnet50.json"),
        "gpt2": load(FILES / "gpt2.json"),
        "25M": Workload("1 x 25M", [[(25_000_000,)]]),
        "465groups": many_groups(),
        **large,
    }
