"""Importing this fuses the process: all that a child of multiprocessing can be told is a name."""

from fused_optim.process import fuse_process

fuse_process()
