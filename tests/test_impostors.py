"""Objects that are not what they say: tensors without memory, containers with other items."""

from unittest import mock

import pytest
import torch
from torch.nn import Parameter
from twins import TORCH, all_options, make_params, set_grads

import fused_optim
import fused_optim._C as _C


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
