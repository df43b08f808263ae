"""max_grad_norm, on the GPU: the CPU's tests with another default device."""

from on_device import marks as pytestmark  # noqa: F401
from test_clipping import *  # noqa: F403
