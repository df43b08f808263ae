"""What setup.py finds out before it compiles, and the messages where something does not fit."""

import dataclasses
import importlib.metadata
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

LOWEST_TORCH = "2.7"


def check_platform(platform: str) -> None:
    """Ends with one message where nothing could be compiled. `platform`: sys.platform."""
    if platform != "linux":
        sys.exit(
            f"fused_optim: Linux on x86-64 and aarch64 is supported, {platform} is not: torch's "
            "own optimizers work there"
        )


def check_torch(version: str) -> None:
    """Ends with one message where torch is older than what the sources compile with."""
    numbers = [tuple(map(int, re.findall(r"\d+", v)[:2])) for v in (version, LOWEST_TORCH)]
    if numbers[0] < numbers[1]:
        sys.exit(f"fused_optim: torch {LOWEST_TORCH} or newer is needed, this is torch {version}")


def warn_of_free_threading(gil_can_be_off: bool) -> None:
    """The module does not declare that it runs without the GIL, so the import turns it on."""
    if gil_can_be_off:
        say("this Python is free-threaded; fused_optim needs the GIL, and importing it turns it on")


def say(message: str) -> None:
    print(f"fused_optim: {message}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Cuda:
    """What of CUDA there is: versions as "13.0", None where there is none."""

    torch: str  # torch's version
    of_torch: str | None  # the CUDA that torch was built with
    hip: str | None  # the HIP that torch was built with
    home: str | None  # the toolkit's folder
    toolkit: str | None


def toolkit_version(home: str | None) -> str | None:
    """What the toolkit's compiler says, None where there is none that runs."""
    try:
        command = [str(pathlib.Path(home or "/nonexistent", "bin", "nvcc")), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", said)
    return found and found[1]


def why_no_cuda(cuda: Cuda) -> str | None:
    """Why the CUDA kernels can't be compiled, None if they can."""
    if cuda.hip is not None:
        return f"torch {cuda.torch} is built for ROCm (HIP {cuda.hip}); there are no HIP kernels"
    if cuda.of_torch is None or cuda.toolkit is None:
        return (
            "that needs a CUDA build of torch and a CUDA toolkit: "
            f"torch {cuda.torch} has CUDA {cuda.of_torch}, CUDA_HOME is {cuda.home}"
            + ("" if cuda.toolkit or not cuda.home else ", where no nvcc runs")
        )
    if cuda.of_torch.split(".")[0] != cuda.toolkit.split(".")[0]:
        return (
            f"torch {cuda.torch} is built with CUDA {cuda.of_torch}, but the toolkit in "
            f"{cuda.home} (CUDA_HOME) is of CUDA {cuda.toolkit}: the major versions must be equal"
        )
    return None


def use_cuda(wanted: str, cuda: Cuda) -> bool:
    """Whether to compile the CUDA kernels. `wanted`: what FUSED_OPTIM_CUDA says, "" if nothing:
    then they are compiled where they can be, and a build without says why, unless torch has no use
    for them."""
    if wanted not in ("", "0", "1"):
        sys.exit(f"fused_optim: FUSED_OPTIM_CUDA must be 0 or 1, not {wanted!r}")
    if wanted == "0":
        return False
    reason = why_no_cuda(cuda)
    if reason and wanted == "1":
        sys.exit(f"fused_optim: FUSED_OPTIM_CUDA=1 asks for the CUDA kernels, but {reason}")
    if reason and (cuda.of_torch or cuda.hip):
        say(
            f"built for the CPU only, as {reason}. (FUSED_OPTIM_CUDA=0 asks for that and says "
            "nothing, FUSED_OPTIM_CUDA=1 makes it an error.)"
        )
    return reason is None


def known_flags(compiler: str, flags: list[str]) -> list[str]:
    """Those that the compiler takes without a warning. `compiler`: a command, as in $CXX."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "empty.cpp")
        source.touch()

        def is_known(flag: str) -> bool:
            command = [*shlex.split(compiler), "-Werror", flag, "-c", str(source)]
            return subprocess.run(command, capture_output=True, cwd=folder).returncode == 0

        # Without the compiler itself, the build says so better than this would.
        return [flag for flag in flags if is_known(flag)] if is_known("-O3") else flags


def torch_requirement(command_line: list[str], version: str) -> str:
    """What the package requires: compiled, exactly the torch that it was compiled for, under the
    version that pip knows (of torch 2.13.0+cu130 it may be 2.13.0); as sources, any that they
    compile with. `version`: torch.__version__."""
    if "sdist" in command_line:
        return f"torch>={LOWEST_TORCH}"
    try:
        return f"torch=={importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:  # installed without pip's records
        return f"torch=={version.partition('+')[0]}"
