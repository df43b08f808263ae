"""States of other dtypes on torch's own path: all or nothing, and the kernels' numbers."""

import copy

import pytest
import torch
from torch.nn import Parameter
from torch.utils.flop_counter import FlopCounterMode
from twins import FUSED, assert_unchanged, same_bits, snapshot

import fused_optim
import fused_optim._C as _C

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def params_of(*shapes, dtype=F32):
    made = []
    for i, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(i)
        made.append(Parameter(torch.randn(shape, generator=generator).to(dtype)))
        made[-1].grad = torch.randn(shape, generator=generator).to(dtype) / 10
    return made


def adam(dtype=F32, steps=1, shapes=((4,), (4,)), **options):
    params = params_of(*shapes, dtype=dtype)
    optimizer = fused_optim.Adam(params, lr=0.1, **options)
    for _ in range(steps):
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=["kernels", "foreach"])
@pytest.mark.filterwarnings("ignore:.*torch.optim's own")
def test_a_narrow_state_that_can_not_be_written(options):
    optimizer, params = adam(**options)
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(1, dtype=BF16).expand(4)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'exp_avg' is expanded"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_a_narrow_state_that_requires_grad():
    """torch steps float32 ones that do."""
    optimizer, params = adam(foreach=True)
    state = torch.zeros(4, dtype=BF16, requires_grad=True)
    optimizer.state[params[1]]["exp_avg"] = state
    optimizer.step()
    assert optimizer.state[params[1]]["exp_avg"] is state and state.any()


@pytest.mark.parametrize(
    "value", [F16, "x", {"exp_avg": torch.float64}, {1: BF16}, {"step": BF16}, {"exp_avgg": BF16}]
)
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=["kernels", "foreach"])
def test_a_bad_state_dtype_in_a_group(value, options):
    optimizer, _ = adam(zero_grads=True, **options)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["state_dtype"] = value
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="fused_optim.Adam: group 0: .*state_dtype"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="fused_optim.Adam: group 0: .*state_dtype"):
        optimizer.load_state_dict(saved)
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("how", ["mode", "compile"])
def test_a_float32_checkpoint_of_bfloat16_parameters_on_torchs_path(how):
    """Where torch's own load would have made them bfloat16."""
    saved = adam()[0].state_dict()
    optimizer, params = adam(BF16, steps=0)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.state[params[0]]["exp_avg"].dtype == F32
    if how == "compile":
        torch.compile(lambda: optimizer.step(), backend="eager")()
        return
    others = params_of((4,), (4,), dtype=BF16)
    theirs = torch.optim.Adam(others, lr=0.1)
    theirs.load_state_dict(copy.deepcopy(saved))
    with FlopCounterMode(display=False):
        optimizer.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        assert same_bits(p.detach(), q.detach())
        assert optimizer.state[p]["exp_avg"].dtype == BF16


@pytest.mark.parametrize("steps", [0, 1])
def test_states_that_torchs_step_can_not_have_are_refused(steps):
    optimizer, _ = adam(BF16, steps, foreach=True)
    optimizer.state_dtype = F32
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 0: 'exp_avg' is to have dtype"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_complex_parameters_have_no_bfloat16_states_there_either():
    p = Parameter(torch.ones(3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    optimizer = fused_optim.Adam([p], foreach=True, state_dtype=BF16)
    with pytest.raises(RuntimeError, match="'exp_avg' can't have dtype"):
        optimizer.step()


@pytest.mark.parametrize("by", ["attribute", "group"])
def test_a_compiled_step_has_the_dtype(by):
    p = params_of((4,))
    if by == "attribute":
        optimizer = fused_optim.Adam(p, state_dtype=BF16)
    else:
        optimizer = fused_optim.Adam([{"params": p, "state_dtype": BF16}])
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(2):
        step()
        assert optimizer.state[p[0]]["exp_avg"].dtype == BF16


def test_sparse_states_are_loaded():
    def model(dtype, **options):
        embedding = torch.nn.Embedding(5, 3, sparse=True, dtype=dtype)
        optimizer = fused_optim.SGD(embedding.parameters(), lr=0.1, momentum=0.9, **options)
        return embedding, optimizer

    embedding, optimizer = model(F32)
    embedding(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    for dtype, options in ((BF16, {}), (F32, {"state_dtype": BF16})):
        other = model(dtype, **options)[1]
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        (state,) = other.state.values()
        assert state["momentum_buffer"].layout == torch.sparse_coo


@pytest.mark.parametrize("wrong", [lambda: torch.zeros(3), lambda: 7, lambda: torch.ones(4).int()])
@pytest.mark.parametrize("has_grad", [True, False])
def test_a_corrupt_average_on_torchs_path(wrong, has_grad):
    optimizer, params = adam(ema_decay=0.9, foreach=True)
    optimizer.state[params[1]]["ema"] = wrong()
    if not has_grad:
        params[1].grad = None
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'ema' "):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.filterwarnings("ignore:.*torch.optim's own")
def test_an_expanded_average_is_an_error_before_the_step():
    optimizer, params = adam(ema_decay=0.9)
    optimizer.state[params[1]]["ema"] = torch.zeros(1, dtype=BF16).expand(4)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'ema' is expanded"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_averages_are_loaded_whole_where_steps_are_torchs():
    optimizer, params = adam(BF16, 2, ema_decay=0.9, ema_dtype=F32)
    other, others = adam(BF16, 0, ema_decay=0.9, ema_dtype=F32, foreach=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, others, strict=True):
        assert same_bits(optimizer.state[p]["ema"], other.state[q]["ema"])


@pytest.mark.parametrize("skip", ["nonfinite", "amp"])
def test_a_skipped_step_converts_nothing(skip):
    optimizer, params = adam(foreach=True, skip_nonfinite=skip == "nonfinite")
    optimizer.state_dtype = BF16
    if skip == "amp":
        optimizer.found_inf = torch.tensor(1.0)
    else:
        params[0].grad[0] = float("nan")
    before = snapshot(optimizer)
    optimizer.step()
    assert_unchanged(optimizer, before)


def test_states_come_back_after_an_error():
    optimizer, _ = adam(foreach=True)
    optimizer.state_dtype = BF16
    optimizer.step()
    before = snapshot(optimizer)

    def fail(*args):
        raise KeyboardInterrupt

    optimizer._torch_step = fail
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_one_state_of_two_parameters_stays_one():
    def train(dtype):
        params = params_of((3,), (3,))
        for p in params:
            p.grad = torch.ones(3)
        optimizer = fused_optim.SGD(params, lr=0.1, momentum=0.9, foreach=True)
        shared = torch.zeros(3, dtype=dtype)
        for p in params:
            optimizer.state[p]["momentum_buffer"] = shared
        optimizer.step()
        return shared.float()

    torch.testing.assert_close(train(BF16), train(F32), rtol=0.01, atol=0)


def test_tensors_without_dimensions_are_rehearsed_too():
    params = params_of((4,), ())
    params[1].grad_dtype = None
    params[1].grad = torch.randn(()).half()
    optimizer = fused_optim.Adam(params, fused=False)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: "):
        optimizer.step()
    assert_unchanged(optimizer, before)


if not hasattr(torch.Tensor, "grad_dtype"):
    del test_tensors_without_dimensions_are_rehearsed_too


def test_hooks_of_loading_have_the_last_word():
    saved = adam(BF16)[0].state_dict()
    optimizer, params = adam(BF16, 0)

    def widen(loaded):
        for state in loaded.state.values():
            state["exp_avg"] = state["exp_avg"].float()

    optimizer.register_load_state_dict_post_hook(widen)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.state[params[0]]["exp_avg"].dtype == F32


@pytest.mark.parametrize("cls", FUSED)
def test_the_kernels_numbers(cls):
    """Assigned to an optimizer that has states, with averages that join later."""
    runs = []
    for foreach in (None, True):
        params = params_of((33,), (5, 7))
        later = params[1].grad
        params[1].grad = None
        flags = {} if cls.__name__ == "Lion" else {"foreach": foreach}
        lr = 2**-7  # which is what Rprop's states begin with, and bfloat16 holds
        optimizer = cls(params, lr=lr, ema_decay=0.75, ema_dtype=F32, **flags)
        optimizer.step()
        optimizer.state_dtype = BF16
        params[1].grad = later
        optimizer.step()
        optimizer.step()
        runs.append((params, optimizer))
    (params, ours), (others, theirs) = runs
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
        for name, state in ours.state[p].items():
            assert theirs.state[q][name].dtype == state.dtype, name
            unit = torch.finfo(state.dtype).eps  # a sum in another order may round otherwise
            torch.testing.assert_close(state, theirs.state[q][name], rtol=4 * unit, atol=1e-6)


def test_an_average_alone_for_any_number_of_threads():
    def average(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        try:
            p = Parameter(torch.full((1 << 18,), 1e-3, dtype=BF16))
            optimizer = fused_optim.SGD([p], lr=0.1, ema_decay=0.9)
            optimizer.state[p]["ema"] = torch.full((1 << 18,), 1e-37)
            p.data.mul_(1e-36)
            optimizer.step()
            return optimizer.state[p]["ema"]
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(before)

    assert same_bits(average(1), average(2))


def test_the_host_run_splits_buckets_as_cuda_does():
    """A bucket's kernel is that of its first tensor."""
    narrow, wide = Parameter(torch.ones(4, dtype=BF16)), Parameter(torch.ones(64))
    for p in (narrow, wide):
        p.grad = torch.ones_like(p)
    optimizer = fused_optim.SGD([wide, narrow], lr=0.5)
    groups, state = optimizer.param_groups, optimizer.state
    assert _C.step_on_host(optimizer._rule, groups, state, None, None, None, 1, 64) == 2
    assert (narrow == 0.5).all() and (wide == 0.5).all()
