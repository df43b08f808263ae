"""What the command line needs beyond torch, asked for before it is imported."""

import importlib.util
import sys

#: The packages that show results, by the names that pip takes.
EXTRAS = ["rich", "matplotlib"]


def require() -> None:
    """Ends the process with one line that says what to install, if something is missing."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"python -m benchmarks needs {' and '.join(missing)}: "
            f"{sys.executable} -m pip install {' '.join(missing)}"
        )
