"""Dense layouts run on the kernels; differing strides give right values; nothing is written
outside a view."""

import contextlib

import pytest
import torch
from torch.nn import Parameter
from twins import (
    CASES,
    SCALARS,
    TORCH,
    assert_same_state,
    assert_same_values,
    case_id,
    copies,
    randn,
    same_bits,
)

LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "permuted": lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
}
SHAPE = (4, 3, 5, 37)


def tensor(seed, dtype=torch.float64):
    return randn(SHAPE, dtype, torch.Generator().manual_seed(seed))


def laid_out(name, seed, dtype=torch.float64):
    return LAYOUTS[name](tensor(seed, dtype))


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_parameter_and_gradient_layouts(case, param_layout, grad_layout):
    cls, options = case
    param = Parameter(laid_out(param_layout, 0))
    twin = Parameter(tensor(0))
    ours, theirs = cls([param], **options), TORCH[cls]([twin], foreach=False, **options)
    for seed in range(4):
        param.grad, twin.grad = laid_out(grad_layout, 1 + seed), tensor(1 + seed)
        ours.step()
        theirs.step()
    assert ours.fallback_reason is None
    assert param.stride() == laid_out(param_layout, 0).stride()
    for key, value in ours.state[param].items():
        if key not in SCALARS[cls]:
            assert value.stride() == param.stride()
            torch.testing.assert_close(value, theirs.state[twin][key], rtol=1e-12, atol=1e-12)
    assert_same_values([param], [twin])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_state_of_another_layout(optimizer_class, state_layout, dtype):
    """As after a checkpoint saved before model.to(memory_format=channels_last)."""
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    param = Parameter(laid_out("channels_last", 0, dtype))
    twin = copies([param])[0]
    ours, same = optimizer_class([param], **options), optimizer_class([twin], **options)
    for seed in range(4):
        param.grad, twin.grad = tensor(seed, dtype), tensor(seed, dtype)
        ours.step()
        same.step()
        for key, value in ours.state[param].items():
            if key not in SCALARS[optimizer_class]:
                ours.state[param][key] = LAYOUTS[state_layout](value)
    assert ours.fallback_reason is None
    assert same_bits(param.detach(), twin.detach())


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 1500])
def test_strided_gradients_around_the_tile_size(optimizer_class, size):
    whole = torch.randn(size, 3)
    params = [Parameter(torch.zeros(size)) for _ in range(2)]
    params[0].grad, params[1].grad = whole[:, 1], whole[:, 1].clone()
    ours = [optimizer_class([p]) for p in params]
    for optimizer in ours:
        optimizer.step()
        assert optimizer.fallback_reason is None
    assert same_bits(params[0].detach(), params[1].detach())


@pytest.mark.parametrize("columns", [slice(2, 5), slice(0, 8, 2)])
def test_sliced_parameter_leaves_its_surroundings(optimizer_class, columns):
    """Parameters that are not dense take torch's step; around them nothing is written."""
    whole = torch.randn(6, 8, dtype=torch.float64)
    before = whole.clone()
    view = whole[:, columns].detach().requires_grad_()
    twin = Parameter(whole[:, columns].clone())
    # fused=True in the groups would send the fallback into torch's kernels, which check nothing.
    ours, theirs = optimizer_class([view]), TORCH[optimizer_class]([twin], foreach=False)
    for group in ours.param_groups:
        if "fused" in group:
            group["fused"] = True
    for _ in range(3):
        grad = torch.randn(twin.shape, dtype=torch.float64)
        view.grad, twin.grad = grad, grad
        ours.step()
        theirs.step()
    assert "not dense" in ours.fallback_reason
    assert torch.equal(view.detach(), twin.detach())
    outside = torch.ones(8, dtype=torch.bool)
    outside[columns] = False
    assert torch.equal(whole[:, outside], before[:, outside])


def test_parameters_side_by_side_in_one_buffer(optimizer_class):
    """Views of a flat buffer, parameters and gradients, as DDP and FSDP make them."""
    buffer, grads = torch.randn(60, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    views = [buffer[i * 20 : (i + 1) * 20].detach().requires_grad_() for i in range(3)]
    twins = copies(views)
    for i, (view, twin) in enumerate(zip(views, twins, strict=True)):
        view.grad = grads[i * 20 : (i + 1) * 20]
        twin.grad = view.grad.clone()
    ours, theirs = optimizer_class(views), TORCH[optimizer_class](twins, foreach=False)
    for _ in range(3):
        ours.step()
        theirs.step()
    assert ours.fallback_reason is None
    assert_same_values(views, twins)
    assert_same_state(ours, theirs)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("kind", ["same", "overlapping", "gradient is the parameter"])
def test_overlapping_memory_takes_torchs_order(optimizer_class, kind):
    """Threads would race where tensors overlap: torch's step does one after the other."""

    def build(cls, **options):
        buffer = torch.linspace(-1, 1, 30, dtype=torch.float64)
        views = [buffer[:20].detach().requires_grad_(), buffer[10:].detach().requires_grad_()]
        if kind == "same":
            views[1] = views[0]
        views = views[:1] if kind == "gradient is the parameter" else views
        for i, view in enumerate(views):
            view.grad = torch.full((20,), 0.5 + i, dtype=torch.float64)
        if kind == "gradient is the parameter":
            views[0].grad = buffer[:20]
        return buffer, cls(views, **options)

    buffer, ours = build(optimizer_class)
    twin, theirs = build(TORCH[optimizer_class], foreach=False)
    for _ in range(3):
        ours.step()
        theirs.step()
    assert "overlap" in ours.fallback_reason
    assert torch.equal(buffer, twin)


@pytest.mark.parametrize("which", ["param", "state"])
def test_lazy_clones_do_not_share_a_write(optimizer_class, which):
    """A copy-on-write clone has its original's memory until somebody writes through torch."""
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    original = torch.linspace(-1, 1, 20, dtype=torch.float64)
    before = original.clone()
    lazy = torch._lazy_clone(original)
    param = (lazy if which == "param" else torch.ones_like(original)).requires_grad_()
    optimizer = optimizer_class([param], **options)
    param.grad = torch.ones(20, dtype=torch.float64)
    if which == "state":
        optimizer.step()
        key = next(k for k in optimizer.state[param] if k not in SCALARS[optimizer_class])
        optimizer.state[param][key] = lazy
    optimizer.step()
    assert torch.equal(original, before)
    assert "shares its memory" in optimizer.fallback_reason
    optimizer.step()
    assert optimizer.fallback_reason is None


def test_scalar_and_empty_tensors(optimizer_class):
    params = [Parameter(torch.tensor(2.0)), Parameter(torch.empty(0, 3)), Parameter(torch.ones(1))]
    twins = copies(params)
    ours, theirs = optimizer_class(params), TORCH[optimizer_class](twins, foreach=False)
    for _ in range(3):
        for p in (*params, *twins):
            p.grad = torch.ones_like(p)
        ours.step()
        theirs.step()
    assert ours.fallback_reason is None
    assert params[0].item() != 2.0
    assert_same_values(params, twins, rtol=1e-6, atol=1e-6)
    assert_same_state(ours, theirs, rtol=1e-6, atol=1e-6)


def test_plain_tensors_and_subclasses(optimizer_class):
    class Marked(torch.Tensor):
        pass

    plain = torch.ones(5, dtype=torch.float64, requires_grad=True)
    marked = torch.ones(5, dtype=torch.float64).as_subclass(Marked).requires_grad_()
    optimizers = [optimizer_class([plain]), optimizer_class([marked])]
    for optimizer, param in zip(optimizers, (plain, marked), strict=True):
        param.grad = torch.full((5,), 0.3, dtype=torch.float64)
        optimizer.step()
    assert optimizers[0].fallback_reason is None
    assert "another type" in optimizers[1].fallback_reason
    torch.testing.assert_close(plain.detach(), marked.detach().as_subclass(torch.Tensor))


def test_inference_tensors_get_torchs_answer(optimizer_class):
    with torch.inference_mode():
        param = torch.ones(3)
    param_grad = torch.ones(3)
    with torch.inference_mode():
        param.grad = param_grad.clone()
        optimizer = optimizer_class([param])
        optimizer.step()
        assert optimizer.fallback_reason is None
        assert (param < 1).all()
    with pytest.raises(RuntimeError, match="[Ii]nference tensor"):
        optimizer.step()


def test_dispatch_modes_see_the_operations(optimizer_class):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    param, twin = (Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(2))
    param.grad, twin.grad = (torch.full((4,), 0.5, dtype=torch.float64) for _ in range(2))
    ours = optimizer_class([param])
    with Recorder():
        ours.step()
    assert seen and "TorchDispatchMode" in ours.fallback_reason
    optimizer_class([twin]).step()
    assert_same_values([param], [twin])


def test_fake_tensors(optimizer_class):
    """As swap_in_optimizer_params_and_state uses them for tracing: shapes only, no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        param = Parameter(mode.from_tensor(torch.ones(4)))
        param.grad = mode.from_tensor(torch.ones(4))
        optimizer = optimizer_class([param])
        optimizer.param_groups[0].update(
            {k: 0.9 for k in optimizer.defaults if k == "momentum"}  # for SGD to have a state
        )
        with contextlib.suppress(Exception):  # torch's for-loop needs the value of `step`
            optimizer.step()
    assert optimizer.fallback_reason is not None
