"""What the build finds out before it compiles: platform, compiler, CUDA, and what it then says."""

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import build_checks  # noqa: E402

CPU = build_checks.Cuda("2.13.0+cpu", None, None, None, None)
FITTING = build_checks.Cuda("2.13.0+cu130", "13.0", None, "/cuda", "13.2")


def cuda(**differing):
    return dataclasses.replace(FITTING, **differing)


#: What there is, and all that the message must name.
NO_CUDA = [
    (cuda(toolkit="12.8"), ["CUDA 13.0", "CUDA 12.8", "/cuda", "FUSED_OPTIM_CUDA"]),
    (cuda(of_torch="12.6"), ["CUDA 12.6", "CUDA 13.2", "/cuda", "FUSED_OPTIM_CUDA"]),
    (cuda(toolkit=None), ["no nvcc runs", "/cuda", "FUSED_OPTIM_CUDA"]),
    (cuda(home=None, toolkit=None), ["needs a CUDA build of torch and a CUDA toolkit"]),
    (cuda(of_torch=None, hip="6.4"), ["ROCm", "HIP 6.4", "no HIP kernels", "FUSED_OPTIM_CUDA"]),
]


@pytest.mark.parametrize(("found", "named"), NO_CUDA)
def test_without_what_cuda_needs_the_build_is_for_the_cpu_and_says_why(found, named, capsys):
    assert not build_checks.use_cuda("", found)
    message = capsys.readouterr().err
    assert all(name in message for name in named) and message.count("\n") == 1
    with pytest.raises(SystemExit) as refused:
        build_checks.use_cuda("1", found)
    assert all(name in str(refused.value) for name in named)
    assert not build_checks.use_cuda("0", found)
    assert capsys.readouterr().err == ""


def test_cuda_kernels_where_toolkit_and_torch_fit(capsys):
    assert build_checks.use_cuda("", FITTING) and build_checks.use_cuda("1", FITTING)
    assert not build_checks.use_cuda("0", FITTING)
    assert not build_checks.use_cuda("", CPU)  # as torch itself: nothing to say
    assert capsys.readouterr().err == ""


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_version_of_a_toolkit(tmp_path):
    assert build_checks.toolkit_version(None) is None
    assert build_checks.toolkit_version(str(tmp_path)) is None
    nvcc = executable(tmp_path / "bin" / "nvcc", "echo 'tools, release 12.8, V12.8.93'")
    assert build_checks.toolkit_version(str(tmp_path)) == "12.8"
    executable(nvcc, "exit 1")
    assert build_checks.toolkit_version(str(tmp_path)) is None


def test_flags_that_a_compiler_does_not_know_are_left_out(tmp_path):
    picky = executable(tmp_path / "c++", 'case "$*" in *-fnew*) exit 1;; esac')
    flags = ["-fold", "-fnew", "-folder"]
    assert build_checks.known_flags(str(picky), flags) == ["-fold", "-folder"]
    assert build_checks.known_flags(f"env A=1 {picky}", flags) == ["-fold", "-folder"]
    broken = executable(tmp_path / "none", "exit 1")
    assert build_checks.known_flags(str(broken), flags) == flags


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_unsupported_platforms_are_one_message(platform):
    code = f"import sys, setuptools; sys.platform = {platform!r}; import setup"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "Linux on x86-64 and aarch64" in result.stderr
    build_checks.check_platform("linux")


def test_a_torch_that_is_too_old_is_one_message():
    with pytest.raises(SystemExit, match=r"torch 2\.7 or newer is needed, this is torch 2\.6\.1"):
        build_checks.check_torch("2.6.1+cu124")
    for version in ("2.7.0", "2.10.0a0+git12", "3.0"):
        build_checks.check_torch(version)


def test_the_module_needs_the_gil_and_the_build_says_so(capsys):
    assert "gil_not_used" not in (ROOT / "csrc" / "bindings.cpp").read_text()
    build_checks.warn_of_free_threading(False)
    assert capsys.readouterr().err == ""
    build_checks.warn_of_free_threading(True)
    assert "needs the GIL" in capsys.readouterr().err


def test_a_torch_without_records_is_required_without_its_label(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    asked = build_checks.torch_requirement(["setup.py", "bdist_wheel"], "2.13.0a0+gitabc")
    assert asked == "torch==2.13.0a0"
