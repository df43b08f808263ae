"""``python -m fused_optim run``: an unmodified script with torch.optim's classes replaced."""

import os
import runpy
import sys

from fused_optim.optimizer import FUSED_CLASSES


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


def run(path: str, arguments: list[str]) -> None:
    """Runs the script as ``python path arguments`` would, on fused optimizers.

    Args:
        path: the script's path.
        arguments: its own command-line arguments.
    """
    replace_torch_classes()
    sys.argv = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    runpy.run_path(path, run_name="__main__")
