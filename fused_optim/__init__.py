"""fused_optim: torch.optim with every step as one fused pass over memory.

``import fused_optim as optim`` replaces ``import torch.optim as optim``. Optimizers that have a
fused kernel are this package's; every other public name is torch.optim's own.
"""

import pkgutil as _pkgutil
import sys as _sys

import torch.optim as _torch_optim
from torch.optim import *  # noqa: F403

# Run from the source folder after a plain `pip install .`, this is the source's package, and the
# compiled extension lies in the installed one.
__path__ = _pkgutil.extend_path(__path__, __name__)  # noqa: F405

from fused_optim import _extension as _extension  # says why, where the build doesn't fit torch
from fused_optim._version import __version__
from fused_optim.adadelta import Adadelta
from fused_optim.adagrad import Adagrad
from fused_optim.adam import Adam
from fused_optim.adamax import Adamax
from fused_optim.adamw import AdamW
from fused_optim.asgd import ASGD
from fused_optim.clip_grad import clip_grad_norm_
from fused_optim.convert import fuse
from fused_optim.lion import Lion
from fused_optim.nadam import NAdam
from fused_optim.optimizer import FusedOptimizer
from fused_optim.radam import RAdam
from fused_optim.rmsprop import RMSprop
from fused_optim.rprop import Rprop
from fused_optim.sgd import SGD

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FusedOptimizer",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "__version__",
    "clip_grad_norm_",
    "fuse",
]
__all__ += [name for name in _torch_optim.__all__ if name not in __all__]


def _alias_submodules() -> list[str]:
    """Makes ``from fused_optim.lr_scheduler import ...`` give torch's module, and likewise each
    public submodule of torch.optim that this package has none of. Returns their names, and those
    of the submodules that both have."""
    prefix = _torch_optim.__name__ + "."
    names = []
    for full_name, module in list(_sys.modules.items()):
        name = full_name.removeprefix(prefix)
        if not full_name.startswith(prefix) or name.startswith("_") or "." in name:
            continue
        names.append(name)
        if f"{__name__}.{name}" not in _sys.modules:
            _sys.modules[f"{__name__}.{name}"] = module
            globals().setdefault(name, module)
    return names


_TORCHS_SUBMODULES = _alias_submodules()


def __dir__() -> list[str]:
    """What editors and notebooks offer: the public names, not this package's inner modules."""
    dunders = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *_TORCHS_SUBMODULES, *dunders})
