"""Ctrl-C on one rank while ranks exchange a norm: all do the step, and it is raised afterwards."""

import contextlib
import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from ranks import ranks_of
from sharded import line, local, make, set_grads
from torch.distributed.device_mesh import init_device_mesh

import fused_optim
import fused_optim._C as _C
from fused_optim import shards

pytestmark = pytest.mark.process
#: Seconds, within which a rank that waits for another one is found out.
LIMIT = 20

two = ranks_of(2, LIMIT)
four = ranks_of(4, LIMIT)


def grid():
    return init_device_mesh("cpu", (2, 2))


@contextlib.contextmanager
def interrupted_while_waiting(signals=1):
    """The last rank comes late, and rank 0 gets Ctrl-C while it waits for that one."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(1)
    if dist.get_rank() != 0:
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2 if signals > 1 else 0)
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_done_everywhere(where, options):
    params, _ = make(where())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5, **options)
    untouched, _ = make(where())
    twin = fused_optim.AdamW(untouched, lr=0.1, max_grad_norm=0.5, **options)
    for number in range(2):
        set_grads(params, seed=number)
        set_grads(untouched, seed=number)
        twin.step()
        dist.barrier()
        with interrupted_while_waiting() if number == 0 else contextlib.nullcontext():
            ours.step()
        assert torch.equal(ours.grad_norm, twin.grad_norm)
        for p, q in zip(params, untouched, strict=True):
            assert torch.equal(local(p.detach()), local(q.detach()))
            assert ours.state[p]["step"] == number + 1


@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
def test_an_exchange_that_is_interrupted(two, options):
    two.run(is_done_everywhere, line, options)


@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
def test_an_exchange_over_a_grid_that_is_interrupted(four, options):
    four.run(is_done_everywhere, grid, options)


def is_clipped_everywhere():
    params, _ = make(grid())
    set_grads(params)
    with interrupted_while_waiting():
        fused_optim.clip_grad_norm_(params, 0.5)
    assert fused_optim.clip_grad_norm_(params, 0.5).item() == pytest.approx(0.5, rel=1e-5)


def test_clipping_that_is_interrupted(four):
    four.run(is_clipped_everywhere)


def failure_is_told():
    """Of a rank that has failed, and gets Ctrl-C while it tells the others."""
    params, _ = make(grid())
    optimizer = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    optimizer.step()

    def fail(*_):
        if dist.get_rank() == 0:
            raise KeyError

    handle = optimizer.register_step_pre_hook(fail)
    is_first = dist.get_rank() == 0
    others = pytest.raises(RuntimeError, match="met with an error on rank 0")
    with interrupted_while_waiting(), contextlib.nullcontext() if is_first else others:
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


def test_a_failure_that_is_told_meanwhile(four):
    four.run(failure_is_told)


def failure_is_told_anyhow():
    """Of a rank that has failed, and gets Ctrl-C before it gets to telling the others."""
    params, _ = make(line())
    optimizer = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    optimizer.step()
    if dist.get_rank() == 0:
        made_anyhow = shards._made_anyhow

        def interrupted(*arguments):
            os.kill(os.getpid(), signal.SIGUSR1)
            return made_anyhow(*arguments)

        def interrupt(*_):
            raise KeyboardInterrupt

        shards._made_anyhow = interrupted
        try:
            with handled(signal.SIGUSR1, interrupt), pytest.raises(KeyboardInterrupt):
                optimizer.step(fail)
        finally:
            shards._made_anyhow = made_anyhow
    else:
        with pytest.raises(RuntimeError, match="met with an error on rank 0"):
            optimizer.step()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


def fail():
    raise KeyError


def test_a_failure_that_is_about_to_be_told(two):
    two.run(failure_is_told_anyhow)


@contextlib.contextmanager
def handled(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_signals_are_handled_afterwards():
    seen = []
    with handled(signal.SIGUSR1, lambda *_: seen.append("usr1")):
        with _C.SignalsLater():
            os.kill(os.getpid(), signal.SIGUSR1)
            with _C.SignalsLater():
                seen.append("inside")
            time.sleep(0.01)
            seen.append("end")
        assert seen == ["inside", "end", "usr1"]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen[3:] == ["usr1"]


def test_what_a_handler_raises_comes_after_the_error_inside():
    def interrupt(*_):
        raise KeyboardInterrupt

    with handled(signal.SIGUSR1, interrupt):
        with pytest.raises(KeyboardInterrupt) as raised, _C.SignalsLater():
            os.kill(os.getpid(), signal.SIGUSR1)
            raise KeyError
        assert isinstance(raised.value.__context__, KeyError)


def test_other_handlers_than_pythons_are_left_alone():
    """A signal that nobody handles, in a process of its own, which it ends."""
    child = os.fork()
    if child == 0:
        with _C.SignalsLater():
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGUSR2


def test_a_handler_that_is_set_meanwhile_stays():
    seen = []
    with handled(signal.SIGUSR1, lambda *_: seen.append("old")):
        with _C.SignalsLater():
            signal.signal(signal.SIGUSR1, lambda *_: seen.append("new"))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == ["new"]


def test_a_forked_process_holds_none_back():
    """Whichever thread forks it, as one that starts workers may while another steps."""
    seen = []
    with handled(signal.SIGUSR1, lambda *_: seen.append("usr1")), _C.SignalsLater():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
            os._exit(len(seen))
        status = os.waitpid(child, 0)[1]
        assert not seen
    assert os.waitstatus_to_exitcode(status) == 1


def test_c_code_that_puts_back_what_it_found_meanwhile():
    """As system(3) does, which ignores Ctrl-C while a command runs."""
    seen = []
    thread = threading.Thread(target=os.system, args=["sleep 0.4"])
    with handled(signal.SIGINT, lambda *_: seen.append("int")):
        with _C.SignalsLater():
            thread.start()
            time.sleep(0.2)
        with _C.SignalsLater():
            pass
        thread.join()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            with _C.SignalsLater():
                os.kill(os.getpid(), signal.SIGINT)
        assert seen == ["int"] * 4


def test_a_process_that_a_thread_forks_has_it_as_its_main_thread():
    seen, codes = [], []

    def fork():
        child = os.fork()
        if child == 0:
            with _C.SignalsLater():
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.01)
                seen.append("end")
            os._exit(seen != ["end", "usr1"])
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with handled(signal.SIGUSR1, lambda *_: seen.append("usr1")):
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    assert codes == [0]


def test_another_thread_holds_none_back():
    seen = []
    inside, done = threading.Event(), threading.Event()

    def step():
        with _C.SignalsLater():
            inside.set()
            done.wait()

    thread = threading.Thread(target=step)
    with handled(signal.SIGUSR1, lambda *_: seen.append("usr1")):
        thread.start()
        inside.wait()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == ["usr1"]
        done.set()
        thread.join()
