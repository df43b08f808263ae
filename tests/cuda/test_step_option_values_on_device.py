"""Values of step options, on the GPU: the CPU's tests with another default device."""

from on_device import marks as pytestmark  # noqa: F401
from test_step_option_values import *  # noqa: F403
