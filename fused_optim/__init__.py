"""fused_optim: torch.optim with every step as one fused pass over memory.

``import fused_optim as optim`` replaces ``import torch.optim as optim``. Optimizers that have a
fused kernel are this package's; every other public name is torch.optim's own.
"""

import sys as _sys

import torch.optim as _torch_optim
from torch.optim import *  # noqa: F403

from fused_optim import _extension as _extension  # first: says why, where the build doesn't fit
from fused_optim._version import __version__
from fused_optim.adam import Adam
from fused_optim.adamw import AdamW
from fused_optim.convert import fuse
from fused_optim.optimizer import FusedOptimizer
from fused_optim.rmsprop import RMSprop
from fused_optim.sgd import SGD

__all__ = [  # noqa: PLE0604
    *_torch_optim.__all__,
    "FusedOptimizer",
    "__version__",
    "fuse",
]


def _alias_submodules() -> None:
    """Makes ``from fused_optim.lr_scheduler import ...`` give torch's module, and so on for each
    submodule of torch.optim that this package has none of."""
    prefix = _torch_optim.__name__ + "."
    for name, module in list(_sys.modules.items()):
        if name.startswith(prefix) and not name.startswith(prefix + "_"):
            ours = __name__ + "." + name[len(prefix) :]
            if _sys.modules.setdefault(ours, module) is module and "." not in ours[len(__name__) + 1 :]:
                globals().setdefault(name[len(prefix) :], module)


_alias_submodules()
