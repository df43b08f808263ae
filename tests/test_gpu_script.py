"""benchmarks/gpu.sh: what it runs and in which order, and what it leaves where parts fail, hang or
write without end. Python and compute-sanitizer are stand-ins."""

import os
import pathlib
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).parents[1]

#: Says what it was called with, and does what the test wants of the part that it is.
STAND_IN = """\
#!{python}
import os, signal, sys, time

line = " ".join(sys.argv[1:])
with open({calls!r}, "a") as calls:
    calls.write(os.environ.get("PYTHONPATH", "") + "|" + line + "\\n")


def interrupted(*_):
    print("FAILED tests/test_late.py::test_b - assert 0", "1 failed, 3 passed in 2.00s", sep="\\n")
    sys.exit(2)


{behaviour}
"""


class Run:
    """The script's exit status and what it left, with stand-ins that behave as they are told."""

    def __init__(self, folder, behaviour, seconds=58, **environment):
        self.calls_file = folder / "calls"
        commands = folder / "bin"
        commands.mkdir()
        for name in ("python", "compute-sanitizer"):
            (commands / name).write_text(
                STAND_IN.format(
                    python=sys.executable, calls=str(self.calls_file), behaviour=behaviour
                )
            )
            (commands / name).chmod(0o755)
        self.folder = folder / "out"
        paths = {"PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(folder)}
        changed = {"WHEELS": "", "PYTHON": str(commands / "python"), "TIME": str(seconds), **paths}
        self.process = subprocess.Popen(
            [str(ROOT / "benchmarks" / "gpu.sh"), str(self.folder)],
            env={**os.environ, **changed, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.printed, _ = self.process.communicate(timeout=2 * seconds + 60)
        self.status = self.process.returncode
        self.calls = [line.split("|", 1) for line in self.calls_file.read_text().splitlines()]
        self.lines = (self.folder / "summary.txt").read_text().splitlines()
        self.parts = {
            name: rest for name, _, rest in (line.partition(": ") for line in self.lines) if rest
        }

    def archived(self, name):
        with tarfile.open(self.folder / "results.tar.gz") as archive:
            return archive.extractfile(f"./{name}").read().decode()


def test_everything_runs_in_order_of_importance(tmp_path):
    run = Run(tmp_path, "")
    assert run.status == 0, run.printed
    assert all(rest.startswith("passed") for rest in run.parts.values())
    names = list(run.parts)
    sanitizers = {"memcheck", "racecheck", "initcheck"}
    in_turn = [name for name in names if name not in sanitizers]
    assert in_turn == [
        "gpu", "build", "info", "tests-cuda", "benchmark", "benchmark-half", "benchmark-large",
        "benchmark-fewer-bytes", "benchmark-sharded", "on-device-1", "on-device-2", "on-device-3",
        "tests-cpu",
    ]  # fmt: skip
    assert (
        set(names[names.index("benchmark-sharded") + 1 : names.index("on-device-1")]) == sanitizers
    )
    assert sorted(path.name for path in run.folder.glob("[!.]*")) == [
        "results.tar.gz", "summary.txt",
    ]  # fmt: skip
    assert not list(tmp_path.glob("tmp.*"))  # its working folder is gone


def test_every_file_of_the_gpus_tests_is_run_once(tmp_path):
    run = Run(tmp_path, "")
    called = [line for _, line in run.calls if "-m pytest" in line]
    named = [word for line in called for word in line.split() if word.endswith("_on_device.py")]
    named = sorted(pathlib.Path(word).name for word in named if "*" not in word)
    assert named == sorted(p.name for p in (ROOT / "tests" / "cuda").glob("test_*_on_device.py"))
    assert all("--junitxml=" in line for line in called)
    (alone,) = (line for line in called if "--ignore-glob *_on_device.py" in line)
    assert " tests/cuda " in alone and " -n " not in alone


def test_sharded_steps_are_measured_on_the_gpu(tmp_path):
    run = Run(tmp_path, "")
    (called,) = (line.split() for _, line in run.calls if "--sharded" in line)
    assert called[:4] == ["-m", "benchmarks", "--device", "cuda"]
    assert called[called.index("--output") + 1].endswith("/benchmark-sharded")


def test_expecttest_is_stood_in_for_where_it_is_lacking(tmp_path):
    lacking = Run(tmp_path, "if 'import expecttest' in line: sys.exit(1)")
    assert lacking.status == 0
    (path,) = {
        path for path, line in lacking.calls if "-m pytest" in line or "sanitizer_run" in line
    }
    assert path.split(":")[0].endswith("/lacking")
    stand_in = lacking.archived("lacking/expecttest.py")
    namespace = {}
    exec(stand_in, namespace)
    assert namespace["ACCEPT"] is False and namespace["TestCase"].__name__ == "TestCase"


def test_a_part_that_fails_and_a_part_that_hangs_do_not_end_the_rest(tmp_path):
    run = Run(
        tmp_path,
        "if 'on_device.py' in line and 'equivalence' in line:\n"
        "    print('tests/test_x.py::test_a FAILED [ 1%]'); print('1 failed, 2 passed in 1.00s')\n"
        "    sys.exit(1)\n"
        "if 'state_dict' in line:\n"
        "    signal.signal(signal.SIGINT, interrupted); time.sleep(100)\n"
        "if 'tests/cuda --ignore-glob' in line:\n"
        "    print('[gw0] [ 1%] ERROR tests/test_y.py::test_c', flush=True)\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(100)\n",
        seconds=29,
    )
    assert run.status == 1
    assert run.parts["on-device-1"].startswith("FAILED (1)")
    assert run.parts["on-device-1"].endswith("1 failed, 2 passed in 1.00s")
    assert run.parts["on-device-2"].startswith("CUT OFF")
    assert run.parts["on-device-2"].endswith("1 failed, 3 passed in 2.00s")
    assert run.parts["tests-cuda"].startswith("CUT OFF")
    assert run.parts["on-device-3"].startswith("passed")
    assert run.parts["tests-cpu"].startswith("passed")
    for name, test in (
        ("on-device-1", "tests/test_x.py::test_a"),
        ("on-device-2", "tests/test_late.py::test_b"),
        ("tests-cuda", "tests/test_y.py::test_c"),
    ):
        index = next(i for i, line in enumerate(run.lines) if line.startswith(name))
        assert run.lines[index + 1] == f"  FAILED {test}"
    assert run.archived("summary.txt").splitlines() == run.lines
    assert "test_b" in run.archived("on-device-2.log")


def test_time_that_runs_out_is_not_a_pass(tmp_path):
    hanging = (
        "if 'memcheck' in line or 'on_device.py' in line or 'benchmarks' in line: time.sleep(100)"
    )
    run = Run(tmp_path, hanging, seconds=12)
    assert run.status == 3
    assert run.parts["memcheck"].startswith("CUT OFF")
    assert run.parts["tests-cpu"].startswith(("LEFT OUT", "passed"))
    assert "FAILED" not in "\n".join(run.lines)


def test_nothing_to_run_is_not_a_pass(tmp_path):
    run = Run(tmp_path, "if 'equivalence' in line: sys.exit(5)")
    assert run.status == 3
    assert run.parts["on-device-1"].startswith("SKIPPED")


def test_the_archive_stays_small_whatever_is_logged(tmp_path):
    noisy = (
        "import random\n"
        "if 'info' in line or 'tests/cuda --ignore-glob' in line:\n"
        "    print('the beginning')\n"
        "    for _ in range(20): print(random.randbytes(1_000_000).hex())\n"
        "    print('the end')\n"
        "for word in sys.argv:\n"
        "    if word.startswith('--junitxml=') and 'tests-cuda.xml' in word:\n"
        "        open(word[11:], 'wb').write(random.randbytes(20_000_000))\n"
    )
    run = Run(tmp_path, noisy)
    assert run.status == 0
    assert (run.folder / "results.tar.gz").stat().st_size <= 16 * 2**20
    log = run.archived("info.log")
    assert log.startswith("the beginning") and log.endswith("the end\n") and "bytes left out" in log
