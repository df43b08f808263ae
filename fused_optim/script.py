"""``python -m fused_optim run``: a script as Python runs it, with torch.optim's classes replaced.

runpy takes its ``__main__`` away when the script's last line has run. Threads that are still
running, atexit handlers and pickle need it, so this is a ``__main__`` that stays. (It keeps its
``__file__``, too, which Python removes: a thread can still start processes that import it.)
"""

import builtins
import importlib.util
import io
import marshal
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import NoReturn, cast

from fused_optim.process import fuse_process

_PYC_HEADER = 16  # bytes ahead of the code in a compiled script


def run(path: str, arguments: list[str]) -> None:
    """Runs the script as ``python path arguments`` would, on fused optimizers.

    Args:
        path: a script, compiled script, or folder or zip file with a ``__main__.py``.
        arguments: its own command-line arguments.
    """
    fuse_process()
    sys.argv = [path, *arguments]
    _run_as_main(lambda main: _load(os.path.join(os.getcwd(), path), main))


def run_module(name: str, arguments: list[str]) -> None:
    """Runs the module as ``python -m name arguments`` would, on fused optimizers.

    Args:
        name: of a module, or of a package with a module ``__main__``.
        arguments: its own command-line arguments.
    """
    fuse_process()
    sys.argv = ["-m", *arguments]
    if not _is_safe_path():
        # `python -m fused_optim` has put the working directory there, `fused-optim` its own folder.
        sys.path[0] = os.getcwd()
    _run_as_main(lambda main: _load_module(name, main))


def _run_as_main(load: Callable[[ModuleType], CodeType]) -> None:
    main = sys.modules["__main__"] = _new_main()
    try:
        exec(load(main), vars(main))
    except SystemExit:
        raise
    except BaseException:
        _show_only_the_scripts_frames()
        raise


def _is_safe_path() -> bool:
    return bool(getattr(sys.flags, "safe_path", sys.flags.isolated))  # Python 3.10 has only -I


def _new_main() -> ModuleType:
    """A ``__main__`` with the names that this version of Python gives to every one."""
    main = ModuleType("__main__")
    if "__annotations__" in vars(sys.modules["__main__"]):
        main.__annotations__ = {}
    vars(main)["__builtins__"] = builtins
    return main


def _load(path: str, main: ModuleType) -> CodeType:
    """Returns the code at an absolute path; ``main`` and sys.path are as it expects them."""
    safe_path = _is_safe_path()
    if not safe_path:
        del sys.path[0]  # the working directory, which `python -m` put there
    finder = pkgutil.get_importer(path)
    if finder is not None:
        sys.path.insert(0, path)
        return _load_from_folder(path, finder.find_spec("__main__"), main)
    if not safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    return _load_file(path, main)


def _load_file(path: str, main: ModuleType) -> CodeType:
    try:
        with io.open_code(path) as file:
            content = file.read()  # once: it may be a pipe
    except OSError as error:
        _exit(2, f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}")
    compiled = content.startswith(importlib.util.MAGIC_NUMBER)
    loader = SourcelessFileLoader if compiled else SourceFileLoader
    vars(main).update(__loader__=loader("__main__", path), __file__=path, __cached__=None)
    if compiled:
        return cast(CodeType, marshal.loads(content[_PYC_HEADER:]))
    return compile(content, path, "exec", dont_inherit=True)


def _load_module(name: str, main: ModuleType) -> CodeType:
    """Returns the code of a module, or of a package's ``__main__``."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name += ".__main__"
            spec = importlib.util.find_spec(name)
    except ImportError as error:
        # As Python does: what a package imports in vain is shown with its frames.
        if error.name is None or (name != error.name and not name.startswith(error.name + ".")):
            raise
        _exit(1, f"error while finding module {name!r}: {type(error).__name__}: {error}")
    except ValueError as error:
        _exit(1, f"error while finding module {name!r}: {type(error).__name__}: {error}")
    if spec is None:
        _exit(1, f"no module named {name}")
    loader = spec.loader
    code = loader.get_code(name) if isinstance(loader, InspectLoader) else None
    if code is None:
        _exit(1, f"no code object available for {name}")
    _become(main, spec)
    sys.argv[0] = spec.origin or name
    return code


def _become(main: ModuleType, spec: ModuleSpec) -> None:
    """Gives ``main`` what an import would give the module of this spec."""
    vars(main).update(
        __package__=spec.parent,
        __loader__=spec.loader,
        __spec__=spec,
        __file__=spec.origin,
        __cached__=spec.cached,
    )


def _load_from_folder(path: str, spec: ModuleSpec | None, main: ModuleType) -> CodeType:
    if spec is None or spec.loader is None:
        _exit(1, f"can't find '__main__' module in {path!r}")
    _become(main, spec)
    # Loaders of folders and zip files have get_code, and what they find has code.
    return cast(CodeType, cast(InspectLoader, spec.loader).get_code("__main__"))


def _exit(status: int, message: str) -> NoReturn:
    """Ends with Python's status and words for a script that it cannot run."""
    print(f"python -m fused_optim run: {message}", file=sys.stderr)
    raise SystemExit(status) from None


def _show_only_the_scripts_frames() -> None:
    """Leaves the frames below the script out of the traceback that is about to be shown.

    They are added while the exception rises, so the hook that shows it is the first that can.
    """
    hook = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        sys.excepthook = hook
        frames = _frames_of_script(frames)
        sys.last_traceback = frames
        hook(kind, error.with_traceback(frames), frames)

    sys.excepthook = show


def _frames_of_script(frames: TracebackType | None) -> TracebackType | None:
    """What follows the last frame of this file; nothing where the script did not compile."""
    of_script = frames
    while frames is not None:
        if frames.tb_frame.f_code.co_filename == run.__code__.co_filename:
            of_script = frames.tb_next
        frames = frames.tb_next
    return of_script
