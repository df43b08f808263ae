"""zero_grads, on the GPU: the CPU's tests with another default device."""

from on_device import marks as pytestmark  # noqa: F401
from test_zeroing import *  # noqa: F403
