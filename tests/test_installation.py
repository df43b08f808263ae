"""The build, as a user meets it: messages, sdist, one OpenMP runtime, memory."""

import email
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
from twins import FUSED, SUPPORTED_ISAS

import fused_optim._C as _C
from fused_optim import _extension

#: Subject of these is the process: its memory, its libraries, its build. Sanitizers change those.
pytestmark = pytest.mark.process

ROOT = pathlib.Path(__file__).parents[1]


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT / "tests",
        env={**os.environ, **environment},
    )


def test_built_for_another_torch_is_one_message():
    with pytest.raises(ImportError) as caught:
        _extension.check_build("2.12.1+cpu", "2.13.0+cu130")
    message = str(caught.value)
    assert "2.12.1+cpu" in message and "2.13.0+cu130" in message and "pip install" in message
    assert "\n" not in message


def test_another_torch_at_import_time():
    result = python(
        "import torch; torch.__version__ = '2.99.0'\n"
        "try: import fused_optim\n"
        "except ImportError as error: print(error)\n"
    )
    assert "2.99.0" in result.stdout and torch.__version__ in result.stdout, result.stderr
    assert "undefined symbol" not in result.stdout + result.stderr


def test_never_built_is_one_message():
    with pytest.raises(ImportError, match="not built.*pip install"):
        _extension.check_build(None, "2.13.0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime():
    """After a parallel step, in a process of its own: the test runner imports other libraries."""
    result = python(
        "import torch, fused_optim, fused_optim._C as c\n"
        "torch.set_num_threads(2)\n"
        "w = torch.ones(1_000_000, requires_grad=True); w.grad = torch.ones_like(w)\n"
        "fused_optim.Adam([w]).step()\n"
        "(w * 2).sum()\n"
        "print(c.openmp_runtime())\n"
        "print(open('/proc/self/maps').read())\n"
    )
    assert result.returncode == 0, result.stderr
    runtime, maps = result.stdout.split("\n", 1)
    loaded = set(re.findall(r"/\S*lib(?:gomp|omp|iomp5)[-.\w]*", maps))
    assert loaded == {os.path.realpath(runtime)}
    assert pathlib.Path(torch.__file__).parent in pathlib.Path(runtime).parents


@pytest.mark.parametrize("isa", SUPPORTED_ISAS)
def test_isa_from_the_environment(isa):
    result = python("import fused_optim._C as c; print(c.isa())", FUSED_OPTIM_ISA=isa)
    assert result.stdout.strip() == isa, result.stderr


def test_unknown_isa_in_the_environment():
    result = python("import fused_optim", FUSED_OPTIM_ISA="sse9")
    assert "ImportError: fused_optim: unknown instruction set 'sse9'" in result.stderr
    assert result.returncode == 1


@pytest.mark.skipif("avx512" in SUPPORTED_ISAS, reason="this processor has them all")
def test_isa_that_the_processor_lacks():
    result = python("import fused_optim", FUSED_OPTIM_ISA="avx512")
    assert "this processor does not support it" in result.stderr


def requirements(metadata):
    """Those on torch, of a package's metadata."""
    lines = email.message_from_bytes(metadata).get_all("Requires-Dist")
    return [line for line in lines if line.startswith("torch") and "extra" not in line]


def test_the_wheel_requires_the_torch_that_it_is_built_for(tmp_path):
    hook = "prepare_metadata_for_build_wheel"
    subprocess.run(
        [sys.executable, "-c", f"import build_backend; build_backend.{hook}({str(tmp_path)!r})"],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    installed = importlib.metadata.version("torch")
    assert requirements(metadata.read_bytes()) == [f"torch=={installed}"]
    assert torch.__version__.startswith(installed)


def test_sdist_has_every_source(tmp_path):
    # A copy, as setuptools packs what an old egg-info lists, whatever MANIFEST.in says.
    unwanted = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "build", "results")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=unwanted)
    subprocess.run(
        [
            sys.executable, "-c",
            f"import build_backend; build_backend.build_sdist({str(tmp_path)!r})",
        ],
        cwd=tree, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
        metadata = tar.extractfile(f"{tar.getnames()[0].partition('/')[0]}/PKG-INFO").read()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    python_files = {f"fused_optim/{p.name}" for p in (ROOT / "fused_optim").glob("*.py*")}
    assert sources | python_files - {"fused_optim/_build.py"} <= packed
    assert {"setup.py", "build_backend.py", "build_checks.py", "pyproject.toml"} <= packed
    # `make test` passes from there, too.
    patterns = (
        "tests/**/*.py",
        "tests/**/*.cpp",
        "tests/**/*.h",
        "benchmarks/**/*.py",
        "benchmarks/*.sh",
        "benchmarks/workloads/*",
        "examples/*.py",
        "docs/**/*.md",
    )
    used = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    assert used | {"Makefile", ".clang-format"} <= packed
    assert requirements(metadata) == ["torch>=2.7"]


def test_build_without_torch_is_one_message():
    result = subprocess.run(
        [sys.executable, "-S", "-c",
         "import importlib.util, sys, types\n"
         "find = importlib.util.find_spec\n"
         "importlib.util.find_spec = lambda n: n if n.startswith('setuptools') else find(n)\n"
         "sys.modules['setuptools'] = types.ModuleType('setuptools')\n"
         "meta = types.ModuleType('setuptools.build_meta'); meta.__all__ = []\n"
         "sys.modules['setuptools.build_meta'] = meta\n"
         "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'\n"
         "import build_backend; build_backend.import_torch()"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "needs torch" in result.stderr and "--no-build-isolation" in result.stderr
    assert "Traceback" not in result.stderr


def test_build_with_an_old_setuptools_is_one_message():
    result = subprocess.run(
        [sys.executable, "-c",
         "import importlib.util\n"
         "importlib.util.find_spec = lambda name: None\n"
         "import build_backend"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "needs setuptools 70.1" in result.stderr
    assert "Traceback" not in result.stderr


#: The process's largest resident memory so far in kB, and since a reset.
PEAK_MEMORY = """
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
def reset_peak():
    open("/proc/self/clear_refs", "w").write("5")
    return peak()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_needs_no_memory_that_grows_with_the_model():
    """Peak resident memory of steps over 25M parameters, after the state exists."""
    code = """
import sys, torch, fused_optim
params = [torch.zeros(n, requires_grad=True) for n in (25_000_000, *(10,) * 100)]
for p in params: p.grad = torch.ones_like(p)
for name in sys.argv[1:]:
    optimizer = getattr(fused_optim, name)(params)
    optimizer.step()
    before = reset_peak()
    for _ in range(5): optimizer.step()
    print(name, peak() - before)
"""
    result = python(PEAK_MEMORY + code, *(cls.__name__ for cls in FUSED))
    assert result.returncode == 0, result.stderr
    grown = dict(line.split() for line in result.stdout.splitlines())
    assert list(grown) == [cls.__name__ for cls in FUSED]
    assert all(int(kilobytes) < 1024 for kilobytes in grown.values()), grown


def test_a_gradient_of_other_strides_needs_no_copy():
    code = """
import torch, fused_optim
w = torch.zeros(5000, 5000, requires_grad=True); w.grad = torch.ones_like(w).t()
w.grad = torch.ones(5000, 5000).t()
optimizer = fused_optim.SGD([w])
optimizer.step()
before = reset_peak()
optimizer.step()
assert optimizer.fallback_reason is None
print(peak() - before)
"""
    result = python(PEAK_MEMORY + code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1024, "kB"


def test_isas_are_in_one_binary():
    if os.uname().machine == "x86_64":
        assert _C.built_isas() == ["baseline", "avx2", "avx512"]


def setup_py(code="import setup", **environment):
    """Runs the build's decisions, without building."""
    prefix = "import setuptools; setuptools.setup = lambda **options: None; "
    return subprocess.run(
        [sys.executable, "-c", prefix + code], capture_output=True, text=True, timeout=120,
        cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


def test_fused_optim_cuda_says_whether_to_compile_cuda():
    assert "must be 0 or 1, not 'yes'" in setup_py(FUSED_OPTIM_CUDA="yes").stderr
    off = setup_py("import setup; print(setup.use_cuda())", FUSED_OPTIM_CUDA="0")
    assert off.stdout.split() == ["False"], off.stderr
    if torch.version.cuda is None:
        refused = setup_py(FUSED_OPTIM_CUDA="1")
        assert refused.returncode != 0
        assert "needs a CUDA build of torch and a CUDA toolkit" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("torchs", "expected"),
    [
        ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", "7.5+PTX 8.0+PTX 8.6 9.0+PTX 10.0+PTX 12.0+PTX"),
        ("sm_90 sm_90a sm_100a compute_120", "9.0+PTX 9.0a 10.0a"),
        ("", ""),
    ],
)
def test_every_major_has_ptx_for_the_gpus_after_it(torchs, expected):
    """Of 11.0, which torch leaves out, the driver compiles 10.0's. What is for one GPU alone
    (9.0a) has none that another could take."""
    found = setup_py(f"import setup; print(*setup.cuda_archs({torchs!r}))")
    assert found.stdout.strip() == expected, found.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="a CPU build of torch")
def test_architectures_are_torchs_own_unless_the_environment_says():
    code = "import os, setup; setup.choose_cuda_archs(); print(os.environ['TORCH_CUDA_ARCH_LIST'])"
    own = setup_py(code, TORCH_CUDA_ARCH_LIST="").stdout.strip()
    names = [name.removesuffix("+PTX").replace(".", "") for name in own.split(";")]
    assert [f"sm_{name}" for name in names] == torch._C._cuda_getArchFlags().split()
    assert setup_py(code, TORCH_CUDA_ARCH_LIST="8.0;9.0").stdout.strip() == "8.0;9.0"
