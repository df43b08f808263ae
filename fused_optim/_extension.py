"""Loads the compiled extension, or says in one message why it can't and what to do."""

import torch

REBUILD = "pip install --force-reinstall --no-deps --no-build-isolation ."


def check_build(built_for: str | None, running: str) -> None:
    """Raises ImportError unless the extension was compiled for the running torch.

    Loading it with another torch would end in undefined symbols or worse: torch's C++ interface
    changes with every release.

    Args:
        built_for: the torch version that the extension was compiled for, None if it never was.
        running: ``torch.__version__``.
    """
    if built_for is None:
        raise ImportError(
            "fused_optim is not built. In its source folder run: pip install --no-build-isolation ."
        )
    if built_for != running:
        raise ImportError(
            f"fused_optim was built for torch {built_for}, but torch {running} is running. "
            f"To rebuild, run in its source folder: {REBUILD}"
        )


def built_for() -> str | None:
    """The torch version that the extension was compiled for."""
    try:
        from fused_optim._build import TORCH_VERSION
    except ModuleNotFoundError:
        return None
    return str(TORCH_VERSION)


check_build(built_for(), str(torch.__version__))

from fused_optim import _C  # noqa: E402

#: The number by which the extension knows each rule.
RULES: dict[str, int] = {name: number for number, name in enumerate(_C.rules())}
