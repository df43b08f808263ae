"""Other threads that change what a step works on: it goes on in the memory that it checked."""

import os
import signal
import threading

import pytest
import torch
from hostile import drop_gradients, meanwhile
from torch.nn import Parameter
from twins import TORCH, all_options, copies, make_params, set_grads

import fused_optim


def test_another_thread_drops_the_gradients_in_first_steps(optimizer_class):
    """The gradients come from backward(): where Python has objects for them, torch itself reads
    freed memory when one thread reads `p.grad` and another sets it to None."""
    params = make_params([(500,)] * 20, torch.float64)
    options = all_options(optimizer_class)
    twins = copies(params)
    set_grads(params, twins, seed=0)
    before, grads = [p.detach().clone() for p in params], [p.grad for p in twins]
    TORCH[optimizer_class](twins, foreach=False, **options).step()
    for _ in range(20):
        optimizer = optimizer_class(params, **options)
        drop_gradients(params)
        for p, value in zip(params, before, strict=True):
            p.data.copy_(value)
        sum((p * grad).sum() for p, grad in zip(params, grads, strict=True)).backward()
        with meanwhile(lambda: drop_gradients(params)):
            optimizer.step()
        for p, old, twin in zip(params, before, twins, strict=True):
            expected = old if torch.equal(p.detach(), old) else twin.detach()
            torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-9)


def test_storage_replaced_while_the_gil_is_released():
    """`p.data = ...` in another thread: the step goes on in the memory that it checked."""
    p = Parameter(torch.ones(1 << 23))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.Adam([p], max_grad_norm=1.0)
    optimizer.step()

    def replace():
        p.data = torch.zeros(p.numel())
        p.grad = torch.ones_like(p)
        state = optimizer.state[p]
        state["exp_avg"] = torch.zeros_like(p)
        _ = optimizer.grad_norm

    with meanwhile(replace):
        for _ in range(5):
            try:
                optimizer.step()
            except RuntimeError as error:
                assert "other memory" in str(error)
    assert p.isfinite().all() and optimizer.grad_norm.isfinite()


def test_grad_norm_is_read_while_steps_write_it():
    params = make_params([(1 << 22,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.SGD(params, lr=0.0, max_grad_norm=1.0, skip_nonfinite=True)
    optimizer.step()
    expected = optimizer.grad_norm.item()
    seen = []
    with meanwhile(lambda: seen.append(optimizer.grad_norm.item() + int(optimizer.skipped_steps))):
        for _ in range(20):
            optimizer.step()
    assert set(seen) == {expected}


def test_the_counter_of_skipped_steps_is_not_written_where_it_was():
    p = Parameter(torch.zeros(1 << 23))
    p.grad = torch.full_like(p, float("nan"))
    optimizer = fused_optim.SGD([p], lr=1.0, skip_nonfinite=True)
    optimizer.step()
    counter = optimizer.skipped_steps

    def replace():
        counter.data = torch.full((), 1000, dtype=torch.int64)

    with meanwhile(replace):
        for _ in range(10):
            optimizer.step()
    assert 1000 <= counter <= 1010 and counter is optimizer.skipped_steps


def test_a_step_that_was_not_skipped_after_all_is_not_counted():
    p = Parameter(torch.zeros(1 << 23))
    p.grad = torch.full_like(p, float("nan"))
    optimizer = fused_optim.SGD([p], lr=1.0, skip_nonfinite=True)
    optimizer.step()
    counts = 1

    def replace():
        p.data = torch.zeros(1 << 23)

    with meanwhile(replace):
        for _ in range(10):
            try:
                optimizer.step()
                counts += 1
            except RuntimeError as error:
                assert "Nothing was changed" in str(error)
    assert optimizer.skipped_steps == counts


def test_averages_of_resting_parameters_are_held_too():
    p, q = Parameter(torch.zeros(1 << 23)), Parameter(torch.zeros(1 << 10))
    optimizer = fused_optim.SGD([p, q], lr=1.0, ema_decay=0.5, max_grad_norm=1e9)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    q.grad = None
    average = optimizer.state[q]["ema"]

    def replace():
        average.data = torch.zeros(3)
        average.data = torch.zeros(1 << 10)

    steps = 1
    with meanwhile(replace):
        for _ in range(10):
            try:
                optimizer.step()
                steps += 1
            except RuntimeError as error:
                assert "Nothing was changed" in str(error)
    assert p.detach().unique().tolist() == [-float(steps)]


def test_two_threads_step_one_optimizer():
    """A mistake of its caller's, but no use of freed memory."""
    params = make_params([(1 << 22,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.Adam(params, max_grad_norm=1.0)
    threads = [threading.Thread(target=optimizer.step) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert params[0].isfinite().all()
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("stepping", [False, True])
def test_state_dicts_of_two_threads(stepping):
    """One beside another, and beside steps that put codes in the place of floats and back."""
    p = Parameter(torch.ones(5000))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.AdamW([p], state_dtype=torch.int8)
    optimizer.step()
    dtypes, failed = set(), []

    def save():
        try:
            dtypes.add(optimizer.state_dict()["state"][0]["exp_avg"].dtype)
        except RuntimeError as error:
            failed.append(error)

    with meanwhile(save):
        for i in range(3000):
            if not stepping:
                optimizer.state_dict()
                continue
            optimizer.state_dtype = (torch.int8, torch.float32)[i % 2]
            optimizer.step()
    assert dtypes == {torch.float32} and not failed


def test_a_state_dict_in_a_process_that_is_forked_meanwhile():
    """The thread that makes one is not in it, and would let nobody else."""
    p = Parameter(torch.ones(5000))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.AdamW([p], state_dtype=torch.int8)
    optimizer.step()
    inside, done = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is thread:
            inside.set()
            done.wait()

    optimizer.register_state_dict_post_hook(wait)
    thread = threading.Thread(target=optimizer.state_dict)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        is_decoded = optimizer.state_dict()["state"][0]["exp_avg"].dtype == torch.float32
        os._exit(not is_decoded)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
