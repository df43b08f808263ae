"""Compiles the extension against the torch that is installed; metadata is in pyproject.toml."""

import os
import pathlib
import re
import runpy
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

import build_backend
import build_checks

build_checks.check_platform(sys.platform)
torch = build_backend.import_torch()
build_checks.check_torch(str(torch.__version__))
from torch.utils import cpp_extension  # noqa: E402  (torch may only now be importable)

ROOT = pathlib.Path(__file__).parent
# Contraction is off, so that every instruction set and device gives the same bits.
CXX_FLAGS = [
    *("-O3", "-std=c++20", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"),
]
# For speed alone, so left out where the compiler has none of that name.
SPEED_FLAGS = [
    # Without these (none changes a value) nothing vectorises.
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"),
    # A loop that only writes a tensor, split off for one value of a scalar, is a third slower than
    # one that reads it, too (measured on ASGD's `ax`).
    "-fno-unswitch-loops",
]
NVCC_FLAGS = ["-O3", "-std=c++20", "--fmad=false", "--expt-relaxed-constexpr"]
# torch's headers are not ours to warn about.
SYSTEM_INCLUDES = [f"-isystem{path}" for path in cpp_extension.include_paths()]


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def use_cuda() -> bool:
    """CUDA sources are compiled with a CUDA torch and its toolkit, unless FUSED_OPTIM_CUDA says."""
    home = cpp_extension.CUDA_HOME
    found = build_checks.Cuda(
        str(torch.__version__),
        torch.version.cuda,
        torch.version.hip,
        home,
        build_checks.toolkit_version(home),
    )
    return build_checks.use_cuda(os.environ.get("FUSED_OPTIM_CUDA", ""), found)


def cuda_archs(torchs_flags: str) -> list[str]:
    """The architectures that torch was compiled for, and the PTX of the lowest one of each major:
    drivers compile it for GPUs between them (11.0 from that of 10.0), and beyond the last."""
    names = [match.groups() for match in re.finditer(r"sm_(\d+)(\d)([af]?)", torchs_flags)]
    archs = []
    for major, minor, suffix in names:
        portable = [int(m) for j, m, s in names if j == major and not s]
        is_lowest = not suffix and int(minor) == min(portable)
        archs.append(f"{major}.{minor}{suffix}" + ("+PTX" if is_lowest else ""))
    return archs


def choose_cuda_archs() -> None:
    """Compiles for what torch itself was compiled for, unless TORCH_CUDA_ARCH_LIST says: by
    default torch would take the GPUs that the building machine happens to have."""
    archs = cuda_archs(torch._C._cuda_getArchFlags() or "")
    if archs and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(archs)


class BuildPy(build_py):
    """Records which torch the extension was compiled for: it loads with no other. Writes the stubs
    from that torch's sources, except where mypy would read them instead of our own (editable)."""

    def run(self) -> None:
        super().run()
        root = ROOT if self.editable_mode else pathlib.Path(self.build_lib)
        record = root / "fused_optim" / "_build.py"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(
            '"""Written by setup.py: what the extension was compiled for."""\n\n'
            f"TORCH_VERSION = {str(torch.__version__)!r}\n"
        )
        if not self.editable_mode:
            runpy.run_path(str(ROOT / "fused_optim" / "_stubs.py"))["write_stubs"](record.parent)


class BuildExt(cpp_extension.BuildExtension):
    """Asks the compiler which flags it knows, before any source is compiled with them."""

    def build_extensions(self) -> None:
        build_checks.warn_of_free_threading(bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
        known = build_checks.known_flags(os.environ.get("CXX", "c++"), SPEED_FLAGS)
        for extension in self.extensions:
            extension.extra_compile_args["cxx"][:0] = known
        super().build_extensions()


def extension() -> Extension:
    cuda = use_cuda()
    engine = "cuda/device/" if cuda else "cuda/no_device/"
    cpp = [path for path in sources("**/*.cpp") if "device/" not in path] + sources(f"{engine}*.c*")
    flags, link_flags = CXX_FLAGS + SYSTEM_INCLUDES, []
    if os.environ.get("FUSED_OPTIM_SANITIZE") == "1":
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags, link_flags = [*flags, *sanitizers, "-g", "-O1"], sanitizers
    if cuda:
        choose_cuda_archs()
        flags = [*flags, f"-isystem{cpp_extension.CUDA_HOME}/include"]
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return kind(
        "fused_optim._C",
        cpp,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": flags, "nvcc": NVCC_FLAGS},
        extra_link_args=link_flags,
    )


setup(
    license="MIT",  # here, because setuptools before 77 and after disagree about pyproject.toml
    install_requires=[build_checks.torch_requirement(sys.argv, str(torch.__version__))],
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
