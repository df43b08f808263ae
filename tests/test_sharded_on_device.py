"""What ranks tell one another where a device has it and the host doesn't wait: the same code, with
the CPU in the place of a device."""

import contextlib
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import ranks_of
from sharded import line, make, set_grads
from torch.nn import Parameter

import fused_optim
from fused_optim import norm_across_ranks
from fused_optim.told_later import ToldLater

pytestmark = pytest.mark.process
LIMIT = 20

two = ranks_of(2, LIMIT)


def rank():
    return dist.get_rank()


class ToldByHost(ToldLater):
    """Without an event to wait for."""

    def __init__(self, ranks, failed):
        self._told = torch.stack([ranks, failed]).clone()
        self._event = mock.Mock()


def exchange(self, sums, has_failed=False, takes_torch=False, redistributed=0, is_last=False):
    return self._exchange_on_device(sums, [has_failed, takes_torch, redistributed])


@contextlib.contextmanager
def as_on_a_device():
    """The exchange is the one that a device makes: it raises nothing."""
    with (
        mock.patch.object(norm_across_ranks.NormAcrossRanks, "exchange", exchange),
        mock.patch.object(norm_across_ranks, "ToldLater", ToldByHost),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
    ):
        yield


def sharded():
    params, _ = make(line())
    set_grads(params)
    return fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)


def shards_of_a_group():
    param = Parameter(torch.ones(3 + rank()))
    param.grad = torch.ones_like(param)
    return fused_optim.AdamW(
        [param], lr=0.1, max_grad_norm=0.5, skip_nonfinite=True, norm_group=dist.group.WORLD
    )


def steps_of(optimizer):
    state = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
    return int(state.get("step", 0))


def steps_as_on_the_host(make):
    ours, twin = make(), make()
    for _ in range(2):
        twin.step()
        with as_on_a_device():
            ours.step()
        torch.testing.assert_close(ours.grad_norm, twin.grad_norm, rtol=1e-12, atol=0)
    assert steps_of(ours) == steps_of(twin) == 2


@pytest.mark.parametrize("make", [sharded, shards_of_a_group])
def test_a_step(two, make):
    two.run(steps_as_on_the_host, make)


def fails_on_one_rank(make, where):
    """Others are told in the next step, in which all raise; then all go on."""
    optimizer = make()
    with as_on_a_device():
        optimizer.step()
        fails_once(optimizer, where)
        with pytest.raises(RuntimeError, match="the step before met with an error on rank 0"):
            optimizer.step()
        number = steps_of(optimizer)
        for _ in range(3):
            optimizer.step()
    assert steps_of(optimizer) == number + 3


def fails_once(optimizer, where):
    (group,) = optimizer.param_groups
    good = group["lr"]
    handle = None
    if rank() == 0 and where == "hook":
        handle = optimizer.register_step_pre_hook(mock.Mock(side_effect=KeyError))
    elif rank() == 0:
        group["lr"] = "none"
    with pytest.raises((KeyError, TypeError)) if rank() == 0 else contextlib.nullcontext():
        optimizer.step()
    group["lr"] = good
    if handle is not None:
        handle.remove()


@pytest.mark.parametrize("where", ["hook", "step"])
@pytest.mark.parametrize("make", [sharded, shards_of_a_group])
def test_a_rank_that_fails(two, make, where):
    two.run(fails_on_one_rank, make, where)


def fails_twice():
    """Rank 1 meets with an error of its own where all others are told of rank 0's."""
    optimizer = sharded()
    with as_on_a_device():
        fails_once(optimizer, "hook")
        handle = None
        if rank() == 1:
            handle = optimizer.register_step_pre_hook(mock.Mock(side_effect=KeyError))
        with pytest.raises(KeyError if rank() == 1 else RuntimeError):
            optimizer.step()
        if handle is not None:
            handle.remove()
        number = steps_of(optimizer)
        for _ in range(3):
            optimizer.step()
    assert steps_of(optimizer) == number + 3


def test_another_rank_fails_when_it_is_told(two):
    two.run(fails_twice)


def other_options_on_one_rank(make):
    optimizer = make()
    with as_on_a_device():
        optimizer.max_grad_norm = 0.5 + rank()
        optimizer.step()
        with pytest.raises(RuntimeError, match="in the step before.*max_grad_norm"):
            optimizer.step()
        optimizer.max_grad_norm = 0.5
        optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("make", [sharded, shards_of_a_group])
def test_other_options_on_one_rank(two, make):
    two.run(other_options_on_one_rank, make)


def steps_in_another_order():
    """Rows over a mesh meet those over a group, of the same ranks."""
    by_mesh, by_group = sharded(), shards_of_a_group()
    optimizers = [by_mesh, by_group] if rank() == 0 else [by_group, by_mesh]
    with as_on_a_device():
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in (by_mesh, by_group):
            with pytest.raises(RuntimeError, match="in the step before.*max_grad_norm"):
                optimizer.step()
        for optimizer in (by_mesh, by_group):
            number = steps_of(optimizer)
            optimizer.step()
            assert steps_of(optimizer) == number + 1


def test_steps_in_another_order(two):
    two.run(steps_in_another_order)
