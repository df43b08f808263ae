"""Twins: a fused optimizer and torch's own, on equal parameters with equal gradients."""

import functools
import inspect
import itertools

import pytest
import torch
from lion_oracle import LION_INFO, LionOracle
from torch.nn import Parameter
from torch.testing._internal.common_optimizers import optim_db

import fused_optim
import fused_optim._C as _C
from fused_optim.optimizer import FUSED_CLASSES

FUSED = sorted(set(FUSED_CLASSES.values()), key=lambda cls: cls.__name__)
# What a fused class must agree with: torch's own where there is one.
TORCH = {fused: parent for parent, fused in FUSED_CLASSES.items()}
TORCH[fused_optim.Lion] = LionOracle
INFOS = {
    fused: next(i for i in [*optim_db, LION_INFO] if i.optim_cls is TORCH[fused]) for fused in FUSED
}
# The states of one element; all others have the parameter's shape.
SCALARS = {fused: {"step", *_C.scalar_states(fused._rule)} for fused in FUSED}
SHAPES = [(5, 7), (33,), (), (2, 3, 4), (1000,), (0,), (17, 1)]
SUPPORTED_ISAS = []
for _isa in _C.built_isas():
    try:
        _C.set_isa(_isa)
        SUPPORTED_ISAS.append(_isa)
    except RuntimeError:
        pass


def flags(cls):
    """The boolean options of a class that change its mathematics."""
    implementation = {"capturable", "differentiable", "foreach", "fused"}
    return [
        name
        for name, parameter in inspect.signature(TORCH[cls].__init__).parameters.items()
        if isinstance(parameter.default, bool) and name not in implementation
    ]


def option_sets(cls):
    """Options that optim_db lists for the class, and every combination of its own flags, with
    momentum and weight decay wherever it has them."""
    listed = [dict(i.kwargs) for i in INFOS[cls].optim_inputs_func(device="cpu")]
    names = inspect.signature(cls.__init__).parameters
    full = {"weight_decay": 0.1, "momentum": 0.9, "lr": 0.01}
    full = {name: value for name, value in full.items() if name in names}
    for values in itertools.product([False, True], repeat=len(flags(cls))):
        options = {**full, **dict(zip(flags(cls), values, strict=True))}
        try:
            cls([torch.zeros(1)], **options)
        except ValueError:  # nesterov without momentum and the like
            continue
        listed.append(options)
    return [o for o in listed if not o.get("foreach") and not o.get("differentiable")]


CASES = [(cls, options) for cls in FUSED for options in option_sets(cls)]


def case_id(case):
    cls, options = case
    return cls.__name__ + "".join(f"-{k}={v}" for k, v in options.items())


def all_options(cls):
    """The last case of a class has all of its states."""
    return next(options for c, options in reversed(CASES) if c is cls)


def on_cuda():
    """Whether the test runs on the default device that tests/cuda sets."""
    return torch.get_default_device().type == "cuda"


def not_on_cuda(reason):
    """Skips a test there. pytest's skipif would decide at import, before the device is set."""

    def decorate(test):
        @functools.wraps(test)
        def run(*args, **kwargs):
            if on_cuda():
                pytest.skip(reason)
            return test(*args, **kwargs)

        return run

    return decorate


def grad_scaler(**options):
    return torch.amp.GradScaler(torch.get_default_device().type, **options)


def randn(shape, dtype, generator):
    """The same random numbers on every device."""
    numbers = torch.randn(shape, dtype=dtype, generator=generator, device="cpu")
    return numbers.to(torch.get_default_device())


def make_params(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [Parameter(randn(shape, wide, generator).to(dtype)) for shape in shapes]


def copies(params, dtype=None):
    """Parameters of the same values, strides and requires_grad."""
    return [
        Parameter(p.detach().clone().to(dtype or p.dtype), requires_grad=p.requires_grad)
        for p in params
    ]


def set_grads(*param_lists, seed):
    """Gives the parameters of all lists the same random gradients, rounded to the first list's
    dtype, in each list's own dtype and the parameter's strides."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for params in zip(*param_lists, strict=True):
        wide = torch.complex128 if params[0].is_complex() else torch.float64
        grad = randn(params[0].shape, wide, generator).to(params[0].dtype)
        for p in params:
            p.grad = torch.empty_like(p).copy_(grad)


class Twins:
    """A fused optimizer, torch's for-loop beside it, and if asked torch's in float64."""

    def __init__(self, cls, options, shapes=SHAPES, dtype=torch.float32, oracle=False):
        self.params = make_params(shapes, dtype)
        self.torch_params = copies(self.params)
        self.ours = cls(self.params, **options)
        self.theirs = TORCH[cls](self.torch_params, foreach=False, **options)
        self.lists = [self.params, self.torch_params]
        if oracle:
            self.oracle_params = copies(self.params, torch.float64)
            self.oracle = TORCH[cls](self.oracle_params, foreach=False, **options)
            self.lists.append(self.oracle_params)
        self.steps = 0

    def step(self, times=1):
        for _ in range(times):
            set_grads(*self.lists, seed=self.steps)
            self.ours.step()
            self.theirs.step()
            if hasattr(self, "oracle"):
                self.oracle.step()
            self.steps += 1

    def assert_close(self, rtol=1e-12, atol=1e-12):
        """Defaults for float64: two orders above what 10 steps of either accumulate (1e-15), five
        below the smallest wrong formula that the suite plants (1e-5 in an update)."""
        assert_same_values(self.params, self.torch_params, rtol, atol)
        assert_same_state(self.ours, self.theirs, rtol, atol)

    def assert_fused(self):
        assert self.ours.fallback_reason is None


def assert_same_values(ours, theirs, rtol=1e-12, atol=1e-12):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol, equal_nan=True)


def assert_same_state(ours, theirs, rtol=1e-12, atol=1e-12):
    """The same keys in the same order, values, dtypes, shapes and strides. Only `step` may be
    elsewhere: of CUDA parameters it is a float32 on the device, as with torch's fused=True."""
    ours, theirs = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert list(ours) == list(theirs)
    for index, state in theirs.items():
        assert list(ours[index]) == list(state)
        for key, value in state.items():
            mine = ours[index][key]
            assert isinstance(mine, torch.Tensor)
            if key == "step" and mine.device != value.device:
                mine = mine.to(value)
            torch.testing.assert_close(
                mine, value, rtol=rtol, atol=atol, equal_nan=True, check_stride=True
            )


def snapshot(optimizer):
    """All bits of parameters and state, to prove that nothing changed."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.detach().clone() for p in params], {
        (id(p), key): value.clone() if isinstance(value, torch.Tensor) else value
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def assert_unchanged(optimizer, before):
    params, state = snapshot(optimizer)
    assert all(same_bits(a, b) for a, b in zip(params, before[0], strict=True))
    assert state.keys() == before[1].keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            assert same_bits(value, before[1][key])
        else:
            assert value is before[1][key] or value == before[1][key]


def same_bits(a, b):
    """Equal to the last bit, NaNs included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return a is b or a.device == b.device
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
