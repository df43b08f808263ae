"""Hostile surroundings of a step: finalizers, signals, other threads."""

import contextlib
import gc
import signal
import sys
import threading

import torch


class Finalizer:
    """Runs a function when the cyclic collector finds it: at the next allocation of an object."""

    def __init__(self, function):
        self.function = function
        self.cycle = self

    def __del__(self):
        self.function()


@contextlib.contextmanager
def collector_at_each_allocation():
    """The collector runs as soon as a few objects were made, and finds what is thrown away here."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


@contextlib.contextmanager
def interrupted(seconds):
    """A Ctrl-C after this time, unless the block is through by then."""

    def handler(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def meanwhile(function):
    """Another thread calls the function again and again, and is let in as often as can be."""
    done = threading.Event()

    def run():
        while not done.is_set():
            function()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


def poison(sizes):
    """Takes memory of these sizes that was just freed and fills it, so that whoever reads it on is
    found out."""
    for size in sizes:
        torch.full((size,), 1e30)
