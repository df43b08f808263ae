"""PEP 517 backend: setuptools', with the environment's torch made visible under build isolation.

pip runs a build in an environment of its own, where the torch to compile against is missing.
Requiring torch there would download another one, and compile against the wrong version.
"""

import importlib.util
import sys
import sysconfig
import types

from setuptools.build_meta import *  # noqa: F403
from setuptools.build_meta import __all__  # noqa: F401

NO_TORCH = (
    "fused_optim: the build needs torch, and this environment has none.\n"
    "Install torch first (pip install torch), then run: pip install --no-build-isolation .\n"
    "uv and build compile in an environment of their own, without it: give them "
    "--no-build-isolation (uv) or --no-isolation (build)."
)

OLD_SETUPTOOLS = (
    "fused_optim: the build needs setuptools 70.1 or newer, and with --no-build-isolation it takes "
    "the environment's.\nRun: pip install --upgrade 'setuptools>=70.1' ninja"
)

if importlib.util.find_spec("setuptools.command.bdist_wheel") is None:
    sys.exit(OLD_SETUPTOOLS)


def import_torch() -> types.ModuleType:
    """The torch to compile against; ends with one message where there is none."""
    if importlib.util.find_spec("torch") is None:
        sys.path.append(sysconfig.get_path("platlib"))
        if importlib.util.find_spec("torch") is None:
            sys.exit(NO_TORCH)
    import torch

    return torch
