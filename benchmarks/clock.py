"""The processor's clock: how many cycles pass in a second, by a chain of additions.

Performance counters are mostly out of reach on virtual machines, and what the system says of the
frequency is not what the core has at the moment. But an addition of two registers takes one cycle
on every processor of today, and one that needs the result of another waits for it.
"""

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import timeit
from collections.abc import Callable

#: As many in a row that the loop around them does not count, and for so long (two thirds of a
#: millisecond at 3 GHz) that a call from Python does not either.
UNROLLED, LOOPS = 256, 8000
#: Register to register: processors work out additions of small constants ahead of time.
ADDITIONS = {"x86_64": "add %1, %0", "aarch64": "add %0, %0, %1"}
SOURCE = """
long chain(long loops, long term) {
  long sum = 0;
  for (long i = 0; i < loops; ++i) {
    __asm__ volatile(%s : "+r"(sum) : "r"(term));
  }
  return sum;
}
"""


@functools.cache
def chain() -> Callable[[int, int], int] | None:
    """Adds the term to itself, 256 times in each loop; None where nothing can be compiled."""
    instruction = ADDITIONS.get(os.uname().machine)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if instruction is None or compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, "chain.c"), pathlib.Path(folder, "chain.so")
        source.write_text(SOURCE % " ".join([f'"{instruction}\\n"'] * UNROLLED))
        command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        function = ctypes.CDLL(str(library)).chain
    function.argtypes, function.restype = [ctypes.c_long, ctypes.c_long], ctypes.c_long
    return function


class Clock:
    """The fastest clock that was seen whenever it was looked at, as times are the fastest, too."""

    def __init__(self) -> None:
        self.hertz: float | None = None

    def look(self) -> None:
        add = chain()
        if add is not None:
            seconds = timeit.timeit(lambda: add(LOOPS, 1), number=1)
            self.hertz = max(self.hertz or 0.0, UNROLLED * LOOPS / seconds)

    def cycles(self, seconds: float) -> float | None:
        """None where the clock cannot be told."""
        return None if self.hertz is None else seconds * self.hertz
