"""A step uses what it has checked: whatever Python code runs meanwhile, nothing freed is read,
nothing is half-written."""

import contextlib
import gc
import pathlib
import random
import threading
import warnings
import weakref
from unittest import mock

import numpy
import pytest
import torch
from hostile import Finalizer, collector_at_each_allocation, interrupted, meanwhile, poison
from torch.nn import Parameter
from twins import (
    CASES,
    TORCH,
    assert_same_state,
    assert_same_values,
    assert_unchanged,
    copies,
    make_params,
    on_cuda,
    same_bits,
    set_grads,
    snapshot,
)

import fused_optim
import fused_optim._C as _C

SHAPES = [(7,), (64, 3), (), (1000,), (0,)]


def all_options(cls):
    """The last case of a class has all of its states."""
    return next(options for c, options in reversed(CASES) if c is cls)


@pytest.fixture
def lists(optimizer_class):
    """A fused optimizer, torch's beside it, with equal gradients."""
    params = make_params(SHAPES, torch.float64)
    others = copies(params)
    set_grads(params, others, seed=0)
    options = all_options(optimizer_class)
    ours = optimizer_class(params, **options)
    return params, others, ours, TORCH[optimizer_class](others, foreach=False, **options)


def drop_gradients(params):
    for p in params:
        p.grad = None
    poison([max(p.numel(), 1) * 2 for p in params] * 3)


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("shape", [(4,), (0,)], ids=str)
def test_repeated_parameters_get_torchs_step(optimizer_class, shape, times):
    options = all_options(optimizer_class)
    p, q = Parameter(torch.ones(shape)), Parameter(torch.ones(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of duplicates
        ours = optimizer_class([p] * times, **options)
        theirs = TORCH[optimizer_class]([q] * times, foreach=False, **options)
    for _ in range(3):
        p.grad, q.grad = torch.ones(shape), torch.ones(shape)
        ours.step()
        theirs.step()
    assert ours.fallback_reason is not None
    assert_same_values([p], [q], rtol=1e-6, atol=1e-6)
    assert_same_state(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_resting_parameter_that_is_repeated_is_averaged_once():
    p = Parameter(torch.zeros(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer = fused_optim.SGD([p, p, Parameter(torch.zeros(2))], lr=0.1, ema_decay=0.5)
    other = optimizer.param_groups[0]["params"][2]
    p.grad, other.grad = torch.zeros(4), torch.zeros(2)
    optimizer.step()
    p.grad = None
    p.data.fill_(1.0)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["ema"], torch.full((4,), 0.5))


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_finalizer_that_drops_the_gradients(optimizer_class, lists, ema_decay):
    """The first step makes objects, and so lets the collector run finalizers."""
    params, _, ours, theirs = lists
    ours.ema_decay = ema_decay
    before = [p.detach().clone() for p in params]
    with collector_at_each_allocation():
        for _ in range(20):
            Finalizer(lambda: drop_gradients(params))
        ours.step()
    theirs.step()
    if any(not torch.equal(p, q) for p, q in zip(params, before, strict=True)):
        # Else they were dropped before the step began to look.
        assert_same_values(params, theirs.param_groups[0]["params"], rtol=1e-9, atol=1e-9)
        for p in params:
            if ema_decay is not None:
                assert torch.equal(ours.state[p]["ema"], p.detach())


@pytest.mark.parametrize("what", ["param", "grad"])
def test_a_finalizer_that_takes_the_memory_away(optimizer_class, what):
    """As FSDP frees storages, by resizing them: nothing is read that is no longer there."""
    params = make_params([(1000,), (2000,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    if optimizer.state:
        pytest.skip("the constructor makes the state")
    before = [p.detach().clone() for p in params]

    def free():
        tensor = params[1] if what == "param" else params[1].grad
        tensor.untyped_storage().resize_(0)
        poison([2000, 1000])

    with collector_at_each_allocation():
        for _ in range(20):
            Finalizer(free)
        with pytest.raises(RuntimeError, match="other memory while|beyond its storage"):
            optimizer.step()
    assert same_bits(params[0].detach(), before[0])
    assert not any("step" in state for state in optimizer.state.values())


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


@pytest.mark.parametrize("drop", ["gradients", "params", "groups", "value"])
def test_a_hyperparameter_that_runs_code(optimizer_class, drop):
    params = make_params([(1000,), (3,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params)
    groups = optimizer.param_groups

    def function():
        if drop == "gradients":
            drop_gradients(params)
        elif drop == "params":
            groups[0]["params"] = []
            params.clear()
        elif drop == "groups":
            groups.clear()
        else:
            groups[0]["lr"] = 0.1
        gc.collect()
        poison([1000] * 4)

    groups[0]["lr"] = Number(0.1, function)
    optimizer.step()
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in params)


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


def test_ctrl_c_in_a_first_step(optimizer_class):
    """All of the state and the whole step, or nothing of it."""
    for seed in range(15):
        params = make_params([(2,)] * 1500)
        set_grads(params, seed=0)
        optimizer = optimizer_class(params, **all_options(optimizer_class))
        before = snapshot(optimizer)
        try:
            with interrupted(random.Random(seed).uniform(1e-5, 3e-3)):
                optimizer.step()
        except KeyboardInterrupt:
            pass
        moved = [not torch.equal(p, old) for p, old in zip(params, before[0], strict=True)]
        assert set(moved) in ({True}, {False})
        if all(moved):
            assert len(optimizer.state) in (0, len(params))
        else:
            assert_unchanged(optimizer, before)


@pytest.mark.process
def test_no_memory_for_new_state():
    """Wherever an allocation of Python's fails: nothing of the step is done, or all of it."""
    testcapi = pytest.importorskip("_testcapi")
    outcomes = set()
    for count in range(0, 60):
        params = make_params([(2,)] * 3)
        set_grads(params, seed=0)
        optimizer = fused_optim.SGD(params, lr=0.1, momentum=0.9, ema_decay=0.5)
        optimizer.state[params[1]] = {"momentum_buffer": None}
        before = snapshot(optimizer)
        arguments = (
            _C.rules().index("SGD"),
            "SGD",
            optimizer.param_groups,
            optimizer.state,
            None,
            None,
        )
        try:
            testcapi.set_nomemory(count, count + 1)
            try:
                reason = _C.step(*arguments, optimizer._fused.options, None)
            finally:
                testcapi.remove_mem_hooks()
        except (MemoryError, RuntimeError):
            reason = "there is no memory"
        if reason is not None:
            assert_unchanged(optimizer, before)
            outcomes.add("failed")
        else:
            assert len(optimizer.state) == 3
            assert all(not torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
            outcomes.add("done")
    assert outcomes == {"failed", "done"}


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


def test_options_changed_meanwhile_hold_from_the_next_step():
    params = make_params([(1000,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0)

    def function():
        optimizer.max_grad_norm = None
        optimizer.zero_grads = True

    optimizer.param_groups[0]["lr"] = Number(0.1, function)
    optimizer.step()
    assert optimizer.grad_norm is not None and params[0].grad.any()
    optimizer.step()
    assert not params[0].grad.any()


def test_ctrl_c_while_a_hyperparameter_is_read():
    params = make_params([(4,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.Adam(params)

    def interrupt():
        raise KeyboardInterrupt

    optimizer.param_groups[0]["lr"] = Number(0.1, interrupt)
    before = snapshot(optimizer)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert_unchanged(optimizer, before)


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


@pytest.mark.parametrize("where", ["state", "parameter's state"])
def test_keys_that_run_code(optimizer_class, where):
    params = make_params([(1000,), (3,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    optimizer.step()
    set_grads(params, seed=1)
    name = next(iter(optimizer.state[params[0]]), "momentum_buffer")
    container = optimizer.state if where == "state" else optimizer.state[params[0]]
    key = EqualToAnything(params[0] if where == "state" else name)
    items = dict(container)
    container.clear()
    container[key] = {}
    container.update(items)
    key.function = lambda: drop_gradients(params)
    with contextlib.suppress(Exception):  # torch's own step may well trip over this
        optimizer.step()
    assert "key" in optimizer.fallback_reason
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in params)


def test_keys_that_run_code_in_states_of_nobody():
    """Whether there are averages is asked of all states."""
    params = make_params([(1000,)] * 20)
    set_grads(params, seed=0)
    optimizer = fused_optim.SGD(params, lr=1.0, ema_decay=0.9)
    key = EqualToAnything("ema")
    optimizer.state["other"] = {key: 1}
    key.function = lambda: pytest.fail("was compared")
    optimizer.step()
    assert optimizer.fallback_reason is None


@pytest.mark.parametrize("resize", [True, False])
def test_code_that_runs_while_state_is_linked(resize, monkeypatch):
    """A key that came in while objects were made, and whose comparison takes memory away."""
    p, other = Parameter(torch.zeros(1000)), Parameter(torch.zeros(1))
    p.grad, other.grad = torch.ones(1000), torch.ones(1)
    optimizer = fused_optim.SGD([p, other], lr=1.0, momentum=0.9)
    state = {"other": torch.zeros(1)}
    optimizer.state[p] = state
    key = EqualToAnything("momentum_buffer")

    def take():
        if resize:
            p.grad.untyped_storage().resize_(0)
        else:
            p.data = torch.full((1000,), 5.0)

    def hash_and_put_key_in(tensor):
        state[key] = 1
        key.function = take
        return id(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__hash__", hash_and_put_key_in)
        with pytest.raises(RuntimeError, match="other memory while"):
            optimizer.step()
    key.function = lambda: None
    assert p.detach().unique().tolist() == [0.0 if resize else 5.0]
    assert list(state) == ["other", key] and list(optimizer.state) == [p]


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


def test_two_parameters_whose_state_is_one_dict():
    results = []
    for cls, options in ((fused_optim.Adam, {}), (torch.optim.Adam, {"foreach": False})):
        params = make_params([(2,), (2,)])
        optimizer = cls(params, lr=0.1, **options)
        shared = {}
        optimizer.state[params[0]] = optimizer.state[params[1]] = shared
        for seed in range(2):
            set_grads(params, seed=seed)
            optimizer.step()
        results.append((params, shared["step"]))
    assert_same_values(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert results[0][1] == results[1][1] == 4


class Tenfold(dict):
    """Gives other values than it holds."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        return value * 10 if key == "lr" else value


class FirstOnly(list):
    def __iter__(self):
        return iter(list.__getitem__(self, slice(1)))


def test_containers_that_give_other_items_than_they_hold():
    params = make_params([(2,), (2,)])
    before = [p.detach().clone() for p in params]
    optimizer = fused_optim.SGD(params, lr=0.1)
    optimizer.param_groups[0] = Tenfold(optimizer.param_groups[0])
    optimizer.param_groups[0]["params"] = FirstOnly(params)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    assert torch.allclose(params[0].detach(), before[0] - 1.0)
    assert torch.equal(params[1].detach(), before[1])


def test_things_that_only_say_that_they_are_tensors(optimizer_class):
    """isinstance() believes an object's __class__; memory must not."""
    params = make_params([(4,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    optimizer.step()
    set_grads(params, seed=1)
    for name in list(optimizer.state[params[0]]):
        fake = mock.Mock(spec=torch.Tensor)
        assert isinstance(fake, torch.Tensor)
        held = optimizer.state[params[0]][name]
        optimizer.state[params[0]][name] = fake
        before = params[0].detach().clone()
        with pytest.raises(Exception):  # noqa: B017 (ours or, for `step`, torch's own)
            optimizer.step()
        if name != "step":
            assert torch.equal(params[0].detach(), before)
        optimizer.state[params[0]][name] = held


def test_fake_tensors_have_no_memory(optimizer_class):
    """They are on the meta device, which is for torch's step, and gets its answer."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.empty(4)

    def fails(cls, grad, **options):
        p = Parameter(torch.ones(4))
        p.grad = torch.ones(4)
        optimizer = cls([p], **options)
        p.data = fake
        p.grad.data = grad
        try:
            optimizer.step()
        except RuntimeError:
            return True
        return False

    for grad in (torch.ones(4), fake):
        ours = fails(optimizer_class, grad)
        assert ours == fails(TORCH[optimizer_class], grad, foreach=False)


def test_an_optimizer_goes_with_its_last_reference(optimizer_class):
    """No cycle keeps its memory until the collector comes."""
    params = make_params([(5,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, max_grad_norm=1.0, ema_decay=0.5)
    optimizer.step()
    with optimizer.ema_parameters():
        pass
    repr(optimizer), optimizer.state_dict()
    reference = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert reference() is None
    finally:
        gc.enable()


def test_results_of_steps_are_tensors():
    options = _C.StepOptions()
    for name in ("grad_norm", "skipped_steps"):
        for wrong in ("x", 1.0, mock.Mock(spec=torch.Tensor)):
            with pytest.raises(TypeError, match="expected a Tensor"):
                setattr(options, name, wrong)
    with pytest.raises(TypeError, match="expected a Tensor"):
        _C.clip_grads([torch.ones(1)], "x", 1.0)
    with pytest.raises(ValueError, match="of one element"):
        _C.clip_grads([torch.ones(1)], torch.empty(0), 1.0)
    with pytest.raises(TypeError, match="expected a Tensor"):
        _C.set_grads(["x"], [None])
    p = Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = fused_optim.SGD([p], skip_nonfinite=True)
    for wrong in (torch.zeros(0, dtype=torch.int64), torch.zeros((), dtype=torch.int32)):
        optimizer._fused.options.skipped_steps = wrong
        with pytest.raises(RuntimeError, match="skipped_steps is no int64"):
            optimizer.step()


@pytest.mark.skipif(on_cuda(), reason="NumPy's memory is the host's")
@pytest.mark.parametrize("states", [False, True])
def test_arrays_that_overlap_under_different_storages(optimizer_class, states):
    """Two tensors of NumPy memory one element apart have storages of their own."""
    array = numpy.ones(101, dtype=numpy.float32)
    values = [torch.from_numpy(array[:100]), torch.from_numpy(array[1:])]
    params = make_params([(100,), (100,)]) if states else [Parameter(v) for v in values]
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, **all_options(optimizer_class))
    optimizer.step()
    if states:
        assert optimizer.fallback_reason is None
        keys = [k for k, v in optimizer.state[params[0]].items() if v.shape == (100,)]
        if not keys:
            pytest.skip("no state")
        for p, value in zip(params, values, strict=True):
            optimizer.state[p][keys[0]] = value
        set_grads(params, seed=1)
        optimizer.step()
    assert "overlap" in optimizer.fallback_reason


@pytest.mark.skipif(on_cuda(), reason="NumPy's memory is the host's")
def test_arrays_that_are_apart_run_on_the_kernels(optimizer_class):
    array = numpy.ones(200, dtype=numpy.float32)
    params = [Parameter(torch.from_numpy(array[:100])), Parameter(torch.from_numpy(array[100:]))]
    set_grads(params, seed=0)
    optimizer = optimizer_class(params)
    optimizer.step()
    assert optimizer.fallback_reason is None


@pytest.mark.process
def test_steps_leave_nothing_behind(optimizer_class):
    """References are given back: the tensors of 200 optimizers are gone when they are."""
    statm = pathlib.Path("/proc/self/statm")

    def resident():
        gc.collect()
        return int(statm.read_text().split()[1]) * 4096

    def run():
        for _ in range(100):
            params = make_params([(20_000,)])
            set_grads(params, seed=0)
            optimizer = optimizer_class(params, max_grad_norm=1.0, ema_decay=0.5)
            optimizer.step()
            with optimizer.ema_parameters():
                pass

    run()
    before = resident()
    run()
    assert resident() - before < 100 * 20_000 * 4 / 2


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
