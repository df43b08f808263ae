"""Hostile surroundings of a step: finalizers, signals, other threads, values that run code."""

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


def drop_gradients(params):
    for p in params:
        p.grad = None
    poison([max(p.numel(), 1) * 2 for p in params] * 3)


class Number:
    """A hyperparameter whose reading runs code."""

    def __init__(self, value, function):
        self.value, self.function = value, function

    def __float__(self):
        self.function()
        return float(self.value)

    def __rmul__(self, other):
        return other * self.value

    def __neg__(self):
        return -self.value


class EqualString(str):
    """A key that is a string, whose comparison runs code."""

    function = staticmethod(lambda: None)
    __hash__ = str.__hash__

    def __eq__(self, other):
        EqualString.function()
        return str.__eq__(self, other)


def fresh(value):
    """The same number or numbers, as objects that nobody else has."""
    if isinstance(value, tuple):
        return tuple(map(fresh, value))
    return float(repr(value)) if isinstance(value, float) else value


class EqualToAnything:
    """A key of the same hash as another, whose comparison runs code once it is armed."""

    function = staticmethod(lambda: None)

    def __init__(self, other):
        self.hash = hash(other)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        self.function()
        return False
