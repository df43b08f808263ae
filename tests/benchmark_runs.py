"""The benchmarks as their tests have them: importable, skipped where their extras are missing."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


def options_of(monkeypatch, *arguments):
    from benchmarks import command_line

    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command_line.parse_arguments()
