"""For tests that run the CPU's tests on a GPU: a file that imports this is skipped without one."""

import pytest
from gpu import SIMULATED, why_no_gpu

if why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)
if SIMULATED:
    pytest.skip("the simulation has none of torch's own kernels", allow_module_level=True)

marks = pytest.mark.usefixtures("default_device")
