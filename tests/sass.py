"""The extension's compiled CUDA kernels, as cuobjdump shows them."""

import functools
import pathlib
import re
import subprocess
from typing import NamedTuple

from torch.utils import cpp_extension

import fused_optim._C as _C


def cuobjdump():
    """From a CUDA toolkit, or the one that comes with triton, which comes with torch."""
    paths = [pathlib.Path(cpp_extension.CUDA_HOME or "/usr/local/cuda", "bin/cuobjdump")]
    try:
        import triton

        paths.append(pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    except ImportError:
        pass
    return next((str(path) for path in paths if path.exists()), None)


def why_not():
    if not _C.cuda_archs():
        return "fused_optim was built without CUDA"
    return None if cuobjdump() else "there is no cuobjdump here"


def dump(what):
    return subprocess.run(
        [cuobjdump(), what, _C.__file__], check=True, capture_output=True, text=True
    ).stdout


class Instruction(NamedTuple):
    text: str  # "@!P0 LDG.E.128 R84, desc[UR8][R10.64]"

    @property
    def operation(self):
        return self.text.split(maxsplit=1)[1 if self.text.startswith("@") else 0].split()[0]

    @property
    def operands(self):
        return self.text.split(self.operation, 1)[1].split(",")

    @property
    def is_wide_load(self):
        return self.operation.startswith("LDG.E") and self.operation.endswith(".128")

    @property
    def loaded(self):
        """The four registers that a load of 16 bytes writes."""
        first = int(re.match(r"\s*R(\d+)", self.operands[0])[1])
        return set(range(first, first + 4))

    @property
    def read(self):
        """Registers that are read, those of an address of 64 bits both."""
        stores = self.operation.startswith(("ST", "RED", "BRA", "BAR"))
        sources = ",".join(self.operands if stores else self.operands[1:])
        registers = {int(number) for number in re.findall(r"\bR(\d+)", sources)}
        return registers | {int(number) + 1 for number in re.findall(r"\bR(\d+)\.64", sources)}


class Kernel(NamedTuple):
    name: str  # "sm_80 Adam 3 bfloat16 505", the last being the words of its table
    code: list[Instruction]

    @property
    def dtype(self):
        return self.name.split()[3]

    def positions(self, *operations):
        return [i for i, x in enumerate(self.code) if x.operation.startswith(operations)]


ARGUMENTS = re.compile(
    r"step_kernel_ofINS_\d+([A-Za-z]+)ELj(\d+)E"
    r"(?:NS\d*_)?(5Mixed)?I?\d*([a-z]+\d*|Compact)E*NS\d*_7TableOfILi(\d+)E"
)
DTYPES = {"f": "float32", "d": "float64", "Compact": "compact"}


def short_name(arch, mangled):
    match = ARGUMENTS.search(mangled)
    if not match:
        return f"{arch} {mangled}"
    rule, states, mixed, dtype, words = match.groups()
    dtype = ("mixed-" if mixed else "") + DTYPES.get(dtype, dtype)
    return f"{arch} {rule} {states} {dtype} {words}"


@functools.cache
def kernels(name):
    """All kernels whose mangled name contains this one, of every architecture."""
    found, arch = [], ""
    for part in re.split(r"(?=code for sm_|Function : )", dump("-sass")):
        title = part.split("\n", 1)[0]
        if title.startswith("code for"):
            arch = title.split()[-1]
        elif name in title:
            lines = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.*?)\s*;", part)
            found.append(Kernel(short_name(arch, title), [Instruction(line) for line in lines]))
    return found


class Usage(NamedTuple):
    function: str
    registers: int
    stack: int
    local: int


@functools.cache
def usages():
    return [
        Usage(name, *map(int, numbers))
        for name, *numbers in re.findall(
            r"Function (\S*_kernel_of\S*):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)",
            dump("-res-usage"),
        )
    ]
