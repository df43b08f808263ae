"""ema_parameters(): parameters and averages are exchanged as a whole, and come back as a whole."""

import contextlib
import pathlib
import random

import pytest
import torch
from hostile import interrupted, meanwhile
from torch.nn import Parameter
from twins import assert_unchanged, make_params, same_bits, set_grads, snapshot

import fused_optim


def averaged(params, steps=2):
    optimizer = fused_optim.SGD(params, lr=0.1, ema_decay=0.5)
    for seed in range(steps):
        set_grads(params, seed=seed)
        optimizer.step()
    return optimizer


def shared_average(optimizer, params):
    optimizer.state[params[1]]["ema"] = optimizer.state[params[0]]["ema"]


def averages_one_element_apart(optimizer, params):
    whole = torch.zeros(11)
    optimizer.state[params[0]]["ema"] = whole[:10]
    optimizer.state[params[1]]["ema"] = whole[1:]


def average_that_is_another_parameter(optimizer, params):
    optimizer.state[params[1]]["ema"] = params[0].detach()


def average_that_is_its_parameter(optimizer, params):
    optimizer.state[params[1]]["ema"] = params[1].detach()


def parameters_of_one_storage(optimizer, params):
    params[1].data = params[0].data


def expanded(optimizer, params):
    optimizer.state[params[1]]["ema"] = torch.zeros(1).expand(10)


def inference_tensor(optimizer, params):
    with torch.inference_mode():
        optimizer.state[params[1]]["ema"] = torch.zeros(10)


def beyond_its_storage(optimizer, params):
    optimizer.state[params[1]]["ema"].untyped_storage().resize_(8)


def other_shape(optimizer, params):
    optimizer.state[params[1]]["ema"] = torch.zeros(11)


def other_dtype(optimizer, params):
    optimizer.state[params[1]]["ema"] = torch.zeros(10, dtype=torch.float64)


def other_device(optimizer, params):
    optimizer.state[params[1]]["ema"] = torch.zeros(10, device="meta")


def no_tensor(optimizer, params):
    optimizer.state[params[1]]["ema"] = "text"


@pytest.mark.parametrize(
    "corrupt",
    [
        shared_average,
        averages_one_element_apart,
        average_that_is_another_parameter,
        average_that_is_its_parameter,
        parameters_of_one_storage,
        expanded,
        inference_tensor,
        beyond_its_storage,
        other_shape,
        other_dtype,
        other_device,
        no_tensor,
    ],
    ids=lambda corrupt: corrupt.__name__,
)
def test_what_cannot_be_exchanged_is_refused_as_a_whole(corrupt):
    params = make_params([(10,), (10,), (3,)])
    optimizer = averaged(params)
    corrupt(optimizer, params)
    tensors = [*params, *(s["ema"] for s in optimizer.state.values() if s["ema"] is not params[0])]
    small = beyond_its_storage is corrupt
    before = [t.detach().clone() for t in tensors if isinstance(t, torch.Tensor) and not small] or [
        p.detach().clone() for p in params
    ]
    with (
        pytest.raises(
            RuntimeError, match=r"SGD: group 0, parameter 1: 'ema' .*Nothing was changed"
        ),
        optimizer.ema_parameters(),
    ):
        pass
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    for tensor, value in zip(tensors, before, strict=False):
        assert tensor.is_meta or same_bits(tensor.detach(), value)
    set_grads(params, seed=9)  # and no flag is left behind
    with contextlib.suppress(RuntimeError):
        optimizer.step()
    with pytest.raises(RuntimeError, match="parameter 1"), optimizer.ema_parameters():
        pass


def test_views_of_one_tensor_that_are_apart_are_exchanged():
    whole = torch.zeros(6, 10)
    views = [Parameter(whole[:, :5]), Parameter(whole[:, 5:]), Parameter(whole[:0])]
    optimizer = averaged(views)
    averages = [optimizer.state[p]["ema"].clone() for p in views]
    before = snapshot(optimizer)
    with optimizer.ema_parameters():
        for p, average in zip(views, averages, strict=True):
            assert torch.equal(p.detach(), average)
    assert_unchanged(optimizer, before)


def test_views_of_one_tensor_that_overlap_are_not():
    whole = torch.zeros(6, 10)
    views = [Parameter(whole[:, :6]), Parameter(whole[:, 5:])]
    optimizer = averaged(views)
    with pytest.raises(RuntimeError, match="parameter 1: .* shares"), optimizer.ema_parameters():
        pass


@pytest.mark.parametrize("where", ["entering", "leaving"])
def test_ctrl_c_comes_before_or_after_all_of_it(where):
    params = make_params([(64,)] * 300)
    optimizer = averaged(params)
    before = snapshot(optimizer)
    averages = [optimizer.state[p]["ema"].clone() for p in params]
    for seed in range(60):
        seconds = random.Random(seed).uniform(1e-6, 3e-3)
        with contextlib.suppress(KeyboardInterrupt):
            if where == "entering":
                with interrupted(seconds), optimizer.ema_parameters():
                    for p, average in zip(params, averages, strict=True):
                        assert torch.equal(p.detach(), average)
            else:
                with interrupted(seconds):
                    for _ in range(100):
                        with optimizer.ema_parameters():
                            pass
        assert_unchanged(optimizer, before)


def test_all_that_can_be_restored_is_and_the_others_are_named():
    params = make_params([(4,), (4,), (4,)])
    optimizer = averaged(params)
    before = [p.detach().clone() for p in params]
    context = optimizer.ema_parameters()
    message = r"still hold(.|\n)*parameter 1: 'param'"
    with pytest.raises(RuntimeError, match=message) as caught, context:
        params[1].data = torch.zeros(7)  # its value has no place there any more
    assert "parameter 0" not in str(caught.value) and "parameter 2" not in str(caught.value)
    for index in (0, 2):
        assert torch.equal(params[index].detach(), before[index])
    params[1].data = before[1].clone()
    with contextlib.suppress(RuntimeError), optimizer.ema_parameters():
        pass
    set_grads(params, seed=7)
    optimizer.step()


def test_it_can_be_used_again_and_as_a_decorator():
    params = make_params([(4,)])
    optimizer = averaged(params)
    average, value = optimizer.state[params[0]]["ema"].clone(), params[0].detach().clone()

    @optimizer.ema_parameters()
    def evaluate():
        return params[0].detach().clone()

    for _ in range(2):
        assert torch.equal(evaluate(), average)
        assert torch.equal(params[0].detach(), value)


def test_contexts_made_before_either_is_entered():
    optimizer = averaged(make_params([(4,)]))
    first, second = optimizer.ema_parameters(), optimizer.ema_parameters()
    before = snapshot(optimizer)
    with first, pytest.raises(RuntimeError, match="inside ema_parameters"), second:
        pass
    assert_unchanged(optimizer, before)


def test_an_optimizer_that_holds_its_own_context_is_collected():
    import gc
    import weakref

    optimizer = averaged(make_params([(4,)]))
    optimizer.context = optimizer.ema_parameters()
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None


def test_leaving_a_context_that_was_not_entered_ends_no_other():
    optimizer = averaged(make_params([(4,)]))
    before = snapshot(optimizer)
    other = optimizer.ema_parameters()
    with optimizer.ema_parameters():
        other.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="inside ema_parameters"):
            optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_and_an_exchange_keep_out_of_each_others_way(foreach):
    """Another thread evaluates on the averages while a large step is done, and the other way."""
    p = Parameter(torch.zeros(1 << 22))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.SGD([p], lr=1.0, ema_decay=1.0, foreach=foreach)
    optimizer.step()
    steps = 1

    def evaluate():
        with contextlib.suppress(RuntimeError), optimizer.ema_parameters():
            pass

    with meanwhile(evaluate):
        for _ in range(10):
            with contextlib.suppress(RuntimeError):
                optimizer.step()
                steps += 1
    assert p.detach().unique().tolist() == [-float(steps)]


def test_a_closure_that_enters_the_context():
    params = make_params([(4,)])
    optimizer = averaged(params)
    context = optimizer.ema_parameters()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="would be trained"):
        optimizer.step(context.__enter__)
    context.__exit__(None, None, None)
    assert_unchanged(optimizer, before)


@pytest.mark.process
def test_leaving_takes_no_memory_for_elements():
    """Evaluation may have filled it."""
    import resource

    params = make_params([(1 << 22,), (1 << 22,)])
    optimizer = averaged(params)
    before = [p.detach().clone() for p in params]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize()
    try:
        with optimizer.ema_parameters():
            resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 22), limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert all(same_bits(p.detach(), b) for p, b in zip(params, before, strict=True))
