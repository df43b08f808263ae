"""The rooms of csrc/: each includes its own headers and those of rooms before it, and no others."""

import pathlib
import re

import pytest

CSRC = pathlib.Path(__file__).parents[1] / "csrc"
#: In the order in which CONTRIBUTING.md describes them.
ROOMS = [
    "base", "storage", "rules", "reduce", "step", "cpu", "cuda", "tensors", "gather", "run", ".",
]  # fmt: skip
#: Below these rooms nobody knows Python, and below tensors nobody knows torch.
FIRST_WITH_PYTHON, FIRST_WITH_TORCH = "gather", "tensors"
FILES = sorted(path for path in CSRC.rglob("*") if path.is_file())
INCLUDE = re.compile(r"^\s*#\s*include\s+([<\"])(.+?)[>\"]", re.MULTILINE)
#: Torch's headers that the engines need: threads and streams.
ENGINES_TORCH = {"ATen/Parallel.h", "c10/cuda/CUDAGuard.h", "c10/cuda/CUDAStream.h"}


def room_of(path: pathlib.PurePath) -> str:
    return path.parts[0] if len(path.parts) > 1 else "."


def includes(path: pathlib.Path) -> list[tuple[bool, str]]:
    """(whether it is one of ours, its name) of each include."""
    return [(quote == '"', name) for quote, name in INCLUDE.findall(path.read_text())]


def ids(path: pathlib.Path) -> str:
    return str(path.relative_to(CSRC))


def test_every_folder_is_a_room():
    assert {room_of(path.relative_to(CSRC)) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_includes_run_down(path):
    room = ROOMS.index(room_of(path.relative_to(CSRC)))
    for is_ours, name in includes(path):
        if not is_ours:
            continue
        assert (CSRC / name).is_file(), f"{name} is not relative to csrc/"
        assert ROOMS.index(room_of(pathlib.PurePath(name))) <= room, f"{name} is in a later room"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_who_knows_torch_and_python(path):
    room = ROOMS.index(room_of(path.relative_to(CSRC)))
    names = {name for is_ours, name in includes(path) if not is_ours}
    torchs = {name for name in names if name.startswith(("ATen/", "c10/", "torch/"))}
    pythons = {n for n in names if n.startswith(("Python.h", "pybind11/", "torch/csrc/"))}
    if room < ROOMS.index(FIRST_WITH_TORCH):
        assert torchs <= (ENGINES_TORCH if room >= ROOMS.index("cpu") else set())
    if room < ROOMS.index(FIRST_WITH_PYTHON):
        assert not pythons
    if room < ROOMS.index("cpu"):  # C++'s own headers have neither a suffix nor a folder
        assert not {name for name in names if "." in name or "/" in name}


def test_contributing_describes_every_room():
    text = (CSRC.parent / "CONTRIBUTING.md").read_text()
    found = re.findall(r"^- `csrc/(\w+)/`", text, re.MULTILINE)
    assert found == ROOMS[:-1]
