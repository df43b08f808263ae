"""ema_decay, on the GPU: the CPU's tests with another default device."""

from on_device import marks as pytestmark  # noqa: F401
from test_averaging import *  # noqa: F403
