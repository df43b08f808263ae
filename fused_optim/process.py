"""A whole process on fused optimizers: torch.optim's own names give them."""

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


def fuse_process() -> None:
    """Replaces torch.optim's classes in all that runs here."""
    replace_torch_classes()
