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
    #: The share of rows whose gradient is not zero. As the gradients stay the same, moments of the
    #: other rows are zero, too.
    nonzero_rows: float = 1.0

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [math.prod(shape) for group in self.groups for shape in group]

    @property
    def tensors(self) -> int:
        return sum(map(len, self.groups))


def load(path: pathlib.Path) -> Workload:
    """A workload from a JSON file with ``name`` and ``groups``, a list of shapes for each."""
    data = json.loads(path.read_text())
    return Workload(data["name"], [[tuple(s) for s in group] for group in data["groups"]])


def many_groups() -> Workload:
    """465 groups of one tensor, of sizes as detection transformers have them."""
    generator = random.Random(0)
    sizes = [
        round(math.exp(generator.uniform(math.log(64), math.log(400_000)))) for _ in range(465)
    ]
    return Workload("465 groups", [[(size,)] for size in sizes])


def embedding() -> Workload:
    """BERT's word embedding. A batch holds few of the words, and an embedding has a gradient of
    zero for each row that is not looked up: dense, as ``torch.nn.Embedding`` makes it."""
    return Workload("row-sparse embedding", [[(30_522, 768)]], nonzero_rows=0.1)


def standard(device: str) -> dict[str, Workload]:
    """The workloads by the names that the command line takes."""
    workloads = {
        "100x64": Workload("100 x 64", [[(64,)] * 100]),
        "1000x1000": Workload("1000 x 1000", [[(1000,)] * 1000]),
        "1000x1": Workload("1000 x 1", [[(1,)] * 1000]),
        "3000x3500": Workload("3000 x 3500", [[(3500,)] * 3000]),
        "465groups": many_groups(),
        "rf_detr": load(FILES / "rf_detr.json"),
        "mobilenet_v3": load(FILES / "mobilenet_v3.json"),
        "resnet50": load(FILES / "resnet50.json"),
        "lstm": load(FILES / "lstm.json"),
        "gaussians": load(FILES / "gaussians.json"),
        "vit_b_16": load(FILES / "vit_b_16.json"),
        "lora_360m": load(FILES / "lora_360m.json"),
        "lora_7b": load(FILES / "lora_7b.json"),
        "gpt2": load(FILES / "gpt2.json"),
        "25M": Workload("1 x 25M", [[(25_000_000,)]]),
        "embedding": embedding(),
    }
    if device == "cuda":
        workloads["llama_3_2_1b"] = load(FILES / "llama_3_2_1b.json")
        workloads["1G"] = Workload("1 x 1G", [[(1_000_000_000,)]])
    return workloads


#: What `--quick` measures.
QUICK = ["100x64", "1000x1000", "465groups", "resnet50", "25M"]


def count_sweep(largest: int = 10_000) -> list[Workload]:
    """1 to 10,000 tensors of 1,000 elements."""
    counts = [c for c in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if c <= largest]
    return [Workload(f"{count} tensors", [[(1000,)] * count]) for count in counts]


def size_sweep(largest: int = 28) -> list[Workload]:
    """One tensor of 2^6 to 2^28 elements."""
    return [Workload(f"2^{power}", [[(2**power,)]]) for power in range(6, largest + 1, 2)]
