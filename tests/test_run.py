"""``python -m fused_optim run``: what a script sees is what it sees under plain Python."""

import json
import os
import pathlib
import py_compile
import subprocess
import sys
import textwrap
import zipfile

import pytest

import fused_optim

PACKAGE_FOLDER = str(pathlib.Path(fused_optim.__file__).parents[1])
RUN = ("-m", "fused_optim", "run")


def command(*arguments, **kwargs):
    """Runs this Python, which finds the package under test from any working directory."""
    paths = [PACKAGE_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **kwargs,
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def assert_same_as_python(*arguments, cwd, options=()):
    """Compares status, output and errors with plain Python's, and returns that."""
    expected = command(*options, *arguments, cwd=cwd)
    result = command(*options, *RUN, *arguments, cwd=cwd)
    assert result.stdout == expected.stdout
    assert result.stderr == expected.stderr
    assert result.returncode == expected.returncode
    return expected


# Prints all that Python tells a script about itself.
PROBE = """
    '''The script's docstring.'''
    names = list(globals())  # before it adds any
    import inspect, json, linecache, sys
    import beside

    def function():
        pass  # found by inspect

    main = sys.modules["__main__"]
    if "__annotations__" in names:
        assert __annotations__ == {}
    assert vars(main) is globals()
    print(json.dumps({
        "argv": sys.argv,
        "path": sys.path,
        "names": names,
        "values": [__name__, __file__, __doc__, __package__, __cached__],
        "spec": __spec__ and [__spec__.name, __spec__.origin, __spec__.cached, __spec__.parent],
        "loader": [type(__loader__).__name__, getattr(__loader__, "path", None)],
        "builtins": type(__builtins__).__name__,
        "source": inspect.getsource(function) if not __file__.endswith("pyc") else "",
        "line": linecache.getline(__file__, 3),
        "code": function.__code__.co_filename,
        "beside": beside.__file__,
        "hook": sys.excepthook is sys.__excepthook__,
    }))
"""


@pytest.fixture
def folder(tmp_path):
    """The probe in every form that Python runs, under ``code``, and links to it beside that."""
    script = write(tmp_path / "code" / "probe.py", PROBE)
    write(tmp_path / "code" / "beside.py", "")
    py_compile.compile(str(script), cfile=str(tmp_path / "code" / "compiled.pyc"))
    write(tmp_path / "code" / "-probe.py", PROBE)
    write(tmp_path / "package" / "__main__.py", PROBE)
    write(tmp_path / "package" / "beside.py", "")
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for file in (tmp_path / "package").iterdir():
            archive.write(file, file.name)
    (tmp_path / "link.py").symlink_to("second_link.py")
    (tmp_path / "second_link.py").symlink_to(script)
    (tmp_path / "linked_folder").symlink_to("code")
    return tmp_path


@pytest.mark.parametrize("path", ["./link.py", "linked_folder/probe.py", "code/compiled.pyc"])
def test_a_script_sees_what_python_shows_it(folder, path):
    expected = assert_same_as_python(path, "--", "-x", "--", "run", cwd=folder)
    assert json.loads(expected.stdout)["argv"] == [path, "--", "-x", "--", "run"]


@pytest.mark.parametrize("path", ["package", "./package.zip"])
def test_a_folder_sees_what_python_shows_it(folder, path):
    assert_same_as_python(path, "--help", cwd=folder)


def test_two_dashes_ahead_of_the_script(folder):
    expected = assert_same_as_python("--", "-probe.py", "--", "-x", cwd=folder / "code")
    assert json.loads(expected.stdout)["argv"] == ["-probe.py", "--", "-x"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has -P from 3.11 on")
def test_safe_path(tmp_path):
    script = write(tmp_path / "script.py", "import sys; print(sys.path)")
    assert_same_as_python(script, cwd=tmp_path, options=["-P"])


def test_what_outlives_the_script_has_its_main(tmp_path):
    write(
        tmp_path / "script.py",
        """
        import atexit, pickle, sys, threading

        class Mine:
            value = 5

        def report(where):
            copy = pickle.loads(pickle.dumps(Mine()))
            main = sys.modules["__main__"]
            print(where, type(copy) is Mine, copy.value, main.report is report)
            import __main__
            assert __main__ is main

        def late():
            threading.main_thread().join()
            report("thread")

        atexit.register(report, "atexit")
        threading.Thread(target=late).start()
        report("script")
        """,
    )
    result = assert_same_as_python("script.py", cwd=tmp_path)
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "script",
        "thread",
        "atexit",
    ]


FAILURES = {
    "exit message": "import sys; sys.exit('enough')",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "x = 1\ny = (\n",
    "exception": """
        def outer():
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise ValueError("chained") from error

        outer()
        """,
    "hook": """
        import atexit, sys, traceback

        def hook(kind, error, frames):
            print(kind, error, traceback.format_tb(frames), sys.excepthook is hook)
            assert error.__traceback__ is frames is sys.last_traceback

        sys.excepthook = hook
        atexit.register(lambda: print(sys.excepthook is hook))
        raise ValueError("shown by the script's own hook")
        """,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_script_fails_as_under_python(tmp_path, failure):
    script = write(tmp_path / "script.py", FAILURES[failure])
    assert assert_same_as_python(script, cwd=tmp_path).returncode != 0


@pytest.mark.parametrize("path", ["none.py", "empty"])
def test_a_missing_script_is_one_line(tmp_path, path):
    (tmp_path / "empty").mkdir()
    expected = command(path, cwd=tmp_path)
    result = command(*RUN, path, cwd=tmp_path)
    assert result.stderr == expected.stderr.replace(sys.executable, f"python {' '.join(RUN)}")
    assert len(result.stderr.splitlines()) == 1
    assert result.returncode == expected.returncode != 0


@pytest.mark.parametrize("arguments", [[], ["-x", "script.py"]], ids=str)
def test_run_explains_itself(tmp_path, arguments):
    result = command(*RUN, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: python -m fused_optim")
    assert "Traceback" not in result.stderr


def test_run_replaces_every_way_of_naming_a_class(tmp_path):
    script = tmp_path / "train.py"
    (tmp_path / "beside.py").write_text("value = 7\n")
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            import torch.optim as optim
            import torch.optim.adam as module
            from torch.optim import Adam, SGD
            import beside

            assert __name__ == "__main__" and sys.argv == [sys.argv[0], "--epochs", "3"]
            assert Adam is optim.Adam is module.Adam
            w = torch.ones(3, requires_grad=True)
            optimizer = Adam([w])
            w.sum().backward()
            optimizer.step()
            assert isinstance(torch.optim.AdamW([w]), torch.optim.Adam)
            print(type(optimizer).__module__, optimizer.fallback_reason, beside.value)
            """
        )
    )
    result = command("-m", "fused_optim", "run", str(script), "--epochs", "3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["fused_optim.adam", "None", "7"]


def test_run_passes_a_failing_script_through(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("import sys; sys.exit(3)")
    assert command("-m", "fused_optim", "run", str(script)).returncode == 3
    assert command("-m", "fused_optim", "run", str(tmp_path / "none.py")).returncode != 0


# Prints which classes a process started from the script has, and starts some, as argv[1] says.
PROCESSES = """
    import multiprocessing, subprocess, sys
    from concurrent.futures import ProcessPoolExecutor

    from torch.optim import Adam
    import beside

    imported = (__name__, Adam.__module__, beside.SGD.__module__)

    def report(*_):
        from torch.optim import AdamW
        print(*imported, AdamW.__module__, sys.argv[2:], flush=True)
        return imported

    def nest(method):
        report()
        child = multiprocessing.get_context(method).Process(target=report)
        child.start()
        child.join()
        sys.exit(child.exitcode)

    if __name__ == "__main__":
        method = sys.argv[1]
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["__main__", "beside"])
        child = context.Process(target=nest, args=(method,))
        child.start()
        child.join()
        assert child.exitcode == 0
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            print(*pool.submit(report).result())
        program = "import torch; print(torch.optim.Adam.__module__)"
        subprocess.run([sys.executable, "-c", program], check=True)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_multiprocessing_are_fused(tmp_path, method):
    """Children, their children and pools of processes, but no other programs."""
    write(tmp_path / "script.py", PROCESSES)
    write(tmp_path / "beside.py", "from torch.optim import SGD")
    result = command(*RUN, "script.py", method, "--", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    imported = "__mp_main__ fused_optim.adam fused_optim.sgd"
    assert result.stdout.splitlines() == [
        *[f"{imported} fused_optim.adamw ['--']"] * 3,
        imported,
        "torch.optim.adam",
    ]


def test_a_fork_server_is_fused_where_the_script_asks_for_nothing(tmp_path):
    write(
        tmp_path / "script.py",
        """
        import multiprocessing
        from torch.optim import Adam

        def report():
            print(__name__, Adam.__module__)

        if __name__ == "__main__":
            child = multiprocessing.get_context("forkserver").Process(target=report)
            child.start()
            child.join()
        """,
    )
    result = command(*RUN, "script.py", cwd=tmp_path)
    assert result.stdout.split() == ["__mp_main__", "fused_optim.adam"], result.stderr


def test_a_module_as_python_runs_it(tmp_path):
    """`run -m package.module`, and a package's ``__main__``, with what Python tells them."""
    write(tmp_path / "package/__init__.py", "import sys; print('package', sys.argv[0])")
    write(tmp_path / "package/module.py", PROBE)
    write(tmp_path / "package/__main__.py", "print(__name__, __spec__.name, __package__)")
    write(tmp_path / "beside.py", "")
    for name in ("package.module", "package"):
        assert_same_as_python("-m", name, "--epochs", "3", "-m", "x", cwd=tmp_path)


def test_a_modules_optimizers_are_fused(tmp_path):
    write(
        tmp_path / "package/train.py",
        """
        import torch
        print(torch.optim.Adam.__module__)
        """,
    )
    assert command(*RUN, "-m", "package.train", cwd=tmp_path).stdout == "fused_optim.adam\n"


def test_what_cannot_be_run_is_one_line(tmp_path):
    write(tmp_path / "package/__init__.py", "")
    cases = [("missing.py",), ("-m", "missing"), ("-m", "package"), ("-m", "missing.module")]
    for arguments in cases:
        result = command(*RUN, *arguments, cwd=tmp_path)
        assert result.returncode in (1, 2)
        (line,) = result.stderr.splitlines()
        assert line.startswith("python -m fused_optim run: ") and arguments[-1] in line


def test_what_a_package_imports_in_vain_is_shown(tmp_path):
    write(tmp_path / "bad/__init__.py", "import nowhere_to_be_found")
    write(tmp_path / "bad/mod.py", "")
    result = command(*RUN, "-m", "bad.mod", cwd=tmp_path)
    assert result.returncode == 1
    assert "bad/__init__.py" in result.stderr and "nowhere_to_be_found" in result.stderr


def test_children_of_a_module_are_fused(tmp_path):
    write(
        tmp_path / "package/train.py",
        """
        import multiprocessing
        import torch

        def child():
            print(torch.optim.Adam.__module__)

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
        """,
    )
    assert command(*RUN, "-m", "package.train", cwd=tmp_path).stdout == "fused_optim.adam\n"
