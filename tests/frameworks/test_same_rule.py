"""Optimizers of other libraries: fuse() says which fused class has their rule, and that is true."""

import importlib
import pathlib
import sys
import types

import lion_pytorch
import pytest
import torch
import transformers

import fused_optim


def timms_optimizers():
    """timm.optim alone. timm's models import torchvision, whose wheels fit torch's CUDA builds, and
    Accelerate imports timm where it is: so it has a folder of its own."""
    package, models = types.ModuleType("timm"), types.ModuleType("timm.models")
    package.__path__ = [str(pathlib.Path(sys.prefix, "timm", "timm"))]
    models.group_parameters = None
    sys.modules.update({"timm": package, "timm.models": models})
    return importlib.import_module("timm.optim")


timm_optim = timms_optimizers()

STEPS = 5


def trained(make, steps, seed=0):
    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (5, 7)]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize(
    "cls", [timm_optim.Lion, lion_pytorch.Lion], ids=lambda cls: cls.__module__
)
def test_lion_goes_on_as_ours(cls):
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    theirs, params = trained(lambda p: cls(p, **options), STEPS)
    with pytest.raises(TypeError, match=r"fused_optim\.Lion has the same rule.*'exp_avg'"):
        fused_optim.fuse(theirs)
    copied = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = fused_optim.Lion(copied, **options)
    for p, q in zip(params, copied, strict=True):
        ours.state[q]["exp_avg"] = theirs.state[p]["exp_avg"].clone()
    for _ in range(STEPS):
        for p, q in zip(params, copied, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        theirs.step()
        ours.step()
    assert ours.fallback_reason is None
    for p, q in zip(params, copied, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


OTHERS = {
    "NAdamW": (timm_optim.NAdamW, {"weight_decay": 0.0}, fused_optim.NAdam, {}),
    "RMSpropTF": (timm_optim.RMSpropTF, {}, fused_optim.RMSprop, {"alpha": 0.9}),
    "Adafactor": (transformers.Adafactor, {"relative_step": False}, fused_optim.Adagrad, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_have_none(name):
    """Whatever is called alike gives other numbers."""
    cls, options, alike, our_options = OTHERS[name]
    optimizer, params = trained(lambda p: cls(p, lr=0.1, **options), STEPS)
    with pytest.raises(TypeError, match="no fused class has its rule"):
        fused_optim.fuse(optimizer)
    _, others = trained(lambda p: alike(p, lr=0.1, **our_options), STEPS)
    assert not torch.allclose(params[0], others[0], rtol=1e-3)
