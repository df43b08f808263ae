"""A whole process on fused optimizers, and the processes that multiprocessing starts from it.

A forked child inherits everything. One that begins afresh (``spawn``, ``forkserver``) imports the
script again, as ``__mp_main__``, and must have the fused classes before the script names them.
Neither the environment nor the command line tells it so: other programs that the script starts
would be told, too. What only such a child reads is the dictionary that multiprocessing sends ahead
of the process object, and unpickling that comes before importing the script.
"""

import importlib
import sys
from collections.abc import Iterable
from multiprocessing import forkserver, spawn
from typing import Any

from fused_optim.optimizer import FUSED_CLASSES

# Taken once, so that installing the functions below twice does not make them call themselves.
_get_preparation_data = spawn.get_preparation_data
_set_forkserver_preload = forkserver.set_forkserver_preload

# The module that fuses the process that imports it.
_CHILD = "fused_optim._child"


def replace_torch_classes() -> None:
    """Rebinds the fused classes' names in torch.optim and its submodules.

    ``torch.optim.Adam``, ``from torch.optim import Adam`` and ``torch.optim.adam.Adam`` all give
    the fused class from then on. Objects that exist already keep their class.
    """
    modules = [
        module
        for name, module in sys.modules.items()
        if name == "torch.optim" or name.startswith("torch.optim.")
    ]
    for torch_class, fused_class in FUSED_CLASSES.items():
        for module in modules:
            for name, value in list(vars(module).items()):
                if value is torch_class:
                    setattr(module, name, fused_class)


def fuse_process() -> None:
    """Replaces torch.optim's classes here and in what multiprocessing starts from here."""
    replace_torch_classes()
    spawn.get_preparation_data = get_preparation_data
    forkserver.set_forkserver_preload = set_forkserver_preload
    set_forkserver_preload([])


class _FusesTheChild:
    """Unpickled, it is the module that fuses the process, imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (_CHILD,)


def get_preparation_data(name: str) -> dict[str, Any]:
    """What multiprocessing sends to a child first, and with it what fuses the child."""
    return {**_get_preparation_data(name), _CHILD: _FusesTheChild()}


def set_forkserver_preload(modules_names: Iterable[str], **options: Any) -> None:
    """multiprocessing's function of this name; the fork server fuses itself before it preloads.

    It would import ``__main__``, the default, ahead of every module. That is left to its children,
    which do so in any case if the server did not.
    """
    modules = [name for name in modules_names if name != "__main__"]
    _set_forkserver_preload([_CHILD, *modules], **options)
