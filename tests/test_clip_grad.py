"""clip_grad_norm_: torch's results and errors, one norm everywhere, nothing written in vain."""

import math

import pytest
import torch
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_ as torch_clip
from twins import SUPPORTED_ISAS, not_on_cuda, on_cuda, randn, same_bits

import fused_optim
import fused_optim._C as _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
NORMS = [1.0, 2.0, math.inf]
#: Around a pack, a row and a chunk of the norm's reduction, in every dtype; empty; more than one
#: thread's share.
SIZES = [
    0,
    1,
    3,
    4,
    7,
    8,
    9,
    511,
    512,
    513,
    1023,
    1024,
    1025,
    2049,
    8193,
    32767,
    32768,
    32769,
    70_001,
]


def params_with_grads(sizes=SIZES, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    params = []
    for size in sizes:
        param = Parameter(torch.zeros(size, dtype=dtype))
        param.grad = (scale * randn((size,), wide, generator)).to(dtype)
        params.append(param)
    return params


def clones(params):
    others = [Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, others, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return others


def exact_norm(params, norm_type=2.0):
    wide = torch.complex128 if any(p.is_complex() for p in params) else torch.float64
    return torch.linalg.vector_norm(
        torch.cat([p.grad.flatten().to(wide) for p in params]), norm_type
    )


def grads_of(params):
    return [p.grad for p in params]


def aligned_at(values, offset):
    """The same values as a view that begins `offset` elements into its storage, NaN around it."""
    memory = torch.full((values.numel() + 32,), float("nan"), dtype=values.dtype)
    start = 8 + offset
    view = memory[start : start + values.numel()]
    view.copy_(values)
    return view, memory


@pytest.mark.parametrize("norm_type", [*NORMS, 3.0, 0.5, "inf"])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e9, math.inf, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_as_torch(dtype, max_norm, norm_type):
    sizes = [5, 33, 1000, 1] + [0] * (float(norm_type) != math.inf)  # an error in torch's inf norm
    params = params_with_grads(sizes, dtype, scale=0.1)
    params.append(Parameter(torch.zeros(3, dtype=dtype)))  # without a gradient
    others = clones(params)
    ours = fused_optim.clip_grad_norm_(params, max_norm, norm_type)
    theirs = torch_clip(others, max_norm, norm_type)
    # Rounding alone: theirs adds in the gradients' dtype, and rounds its coefficient to it.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=8 * eps, atol=0)
    for p, q in zip(params, others, strict=True):
        if q.grad is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, q.grad, rtol=8 * eps, atol=eps, equal_nan=True)


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)],
    ids=str,
)
def test_the_norm_is_exact_but_for_its_last_rounding(dtype, bound, norm_type):
    params = params_with_grads(dtype=dtype)
    exact = exact_norm(params, norm_type).item()
    summed = _C.grad_norm(grads_of(params), norm_type).item()
    assert abs(summed / exact - 1) < 1e-12  # before it is rounded to the gradients' dtype
    with torch.no_grad():
        ours = fused_optim.clip_grad_norm_(params, 1e9, norm_type)
    assert ours.dtype == dtype
    if math.isfinite(ours):
        assert abs(ours.item() / exact - 1) < max(bound, torch.finfo(dtype).eps)


@not_on_cuda("the host's kernels")
@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_one_result_on_every_instruction_set_thread_count_alignment_and_launch(dtype, norm_type):
    params = params_with_grads(dtype=dtype)
    max_norm = exact_norm(params, norm_type).item() / 3
    results = []
    for isa in SUPPORTED_ISAS:
        for threads, offset in ((1, 0), (2, 1), (2, 3), (3, 5)):
            _C.set_isa(isa)
            torch.set_num_threads(threads)
            others = clones(params)
            for p in others:
                p.grad = aligned_at(p.grad, offset)[0]
            norm = _C.grad_norm(grads_of(others), norm_type)
            _C.clip_grads(grads_of(others), norm, max_norm)
            results.append((norm.item(), grads_of(others)))
    for blocks, offset in ((1, 0), (3, 0), (132, 1)):
        others = clones(params)
        for p in others:
            p.grad = aligned_at(p.grad, offset)[0]
        norm = _C.clip_on_host(grads_of(others), norm_type, max_norm, blocks)
        results.append((norm, grads_of(others)))
    for norm, grads in results:
        assert norm == results[0][0]
        assert all(same_bits(a, b) for a, b in zip(grads, results[0][1], strict=True))


@not_on_cuda("the host's kernels")
@pytest.mark.parametrize("size", [n for n in SIZES if n])
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_nothing_outside_a_gradient_is_read_or_written(dtype, size):
    """NaN all around: read, it would show in the norm; written, it would be gone."""
    for offset in (0, 1, 3):
        (param,) = params_with_grads([size], dtype, seed=offset)
        for clip in (
            lambda g: fused_optim.clip_grad_norm_([g], 1e-3),
            lambda g: _C.clip_on_host([g.grad], 2.0, 1e-3, 3),
        ):
            target = Parameter(torch.zeros(size, dtype=dtype))
            target.grad, memory = aligned_at(param.grad, offset)
            assert math.isfinite(clip(target))
            outside = torch.ones(memory.numel(), dtype=torch.bool)
            outside[8 + offset : 8 + offset + size] = False
            assert memory[outside].isnan().all() and target.grad.isfinite().all()


def test_three_thousand_tiny_gradients_in_any_order_of_dtypes():
    params = [
        params_with_grads([1 + i % 13], DTYPES[i % 3], seed=i, scale=0.01)[0] for i in range(3000)
    ]
    exact = exact_norm(params).item()
    if not on_cuda():
        assert _C.clip_on_host(grads_of(params), 2.0, math.inf, 7) == pytest.approx(exact, 1e-12)
    assert fused_optim.clip_grad_norm_(params, exact / 2).item() == pytest.approx(exact, 1e-6)
    # bfloat16 gradients are rounded once more.
    assert exact_norm(params).item() == pytest.approx(exact / 2, 1e-3)


def test_where_nothing_is_clipped_nothing_is_written():
    params = params_with_grads([5, 40_000])
    before, versions = grads_of(clones(params)), [p.grad._version for p in params]
    fused_optim.clip_grad_norm_(params, 1e9)
    assert all(same_bits(p.grad, g) for p, g in zip(params, before, strict=True))
    if not on_cuda():  # a GPU decides for itself
        assert [p.grad._version for p in params] == versions
    fused_optim.clip_grad_norm_(params, 1.0)
    assert all(p.grad._version > v for p, v in zip(params, versions, strict=True))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_layouts(layout):
    generator = torch.Generator().manual_seed(0)
    x = randn((4, 6, 5, 2), torch.float32, generator)
    grad = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.permute(3, 1, 0, 2),
        "sliced": lambda: x[:, ::2],
        "expanded": lambda: x[:1].expand(4, 6, 5, 2),
    }[layout]()
    param = Parameter(torch.zeros(grad.shape))
    param.grad = grad
    exact = torch.linalg.vector_norm(grad.double()).item()
    if layout == "expanded":  # torch can't write it either
        with pytest.raises(RuntimeError):
            fused_optim.clip_grad_norm_(param, exact / 2)
        return
    expected = grad.double() / 2
    assert fused_optim.clip_grad_norm_(param, exact / 2).item() == pytest.approx(exact, 1e-6)
    torch.testing.assert_close(param.grad.double(), expected, rtol=1e-5, atol=1e-7)


def test_sparse_gradients():
    def made():
        param = Parameter(torch.zeros(4, 2))
        indices = torch.tensor([[0, 2]])
        param.grad = torch.sparse_coo_tensor(indices, torch.ones(2, 2), (4, 2))
        return param

    outcomes = []
    for clip in (fused_optim.clip_grad_norm_, torch_clip):
        param = made()
        try:
            outcomes.append((clip([param], 1.0), param.grad.to_dense()))
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert str(outcomes[0]) == str(outcomes[1])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm_type", NORMS)
def test_infinite_and_nan_norms(value, norm_type):
    params = params_with_grads([5, 1000])
    params[1].grad[100] = value
    others, third = clones(params), clones(params)
    ours = fused_optim.clip_grad_norm_(params, 1.0, norm_type)
    theirs = torch_clip(others, 1.0, norm_type)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.grad, q.grad, equal_nan=True)
    before = grads_of(clones(third))
    messages = []
    for clip in (fused_optim.clip_grad_norm_, torch_clip):
        with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped") as caught:
            clip(third, 1.0, norm_type, error_if_nonfinite=True)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert all(same_bits(p.grad, g) for p, g in zip(third, before, strict=True))


def test_parameters_in_every_form():
    (single,), several = params_with_grads([7]), params_with_grads([3, 4])
    assert fused_optim.clip_grad_norm_(single, 1.0).dim() == 0
    before = exact_norm(several).item()
    norm = fused_optim.clip_grad_norm_((p for p in several), 0.5)
    assert norm.item() == pytest.approx(before, 1e-6)
    assert exact_norm(several).item() == pytest.approx(0.5, 1e-5)
    assert fused_optim.clip_grad_norm_([], 1.0).item() == 0
    assert fused_optim.clip_grad_norm_([Parameter(torch.zeros(2))], 1.0).item() == 0
    with pytest.warns(UserWarning, match="empty generator"):
        fused_optim.clip_grad_norm_((p for p in []), 1.0)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_foreach(foreach):
    params = params_with_grads([5, 1000])
    exact = exact_norm(params).item()
    norm = fused_optim.clip_grad_norm_(params, 1.0, foreach=foreach)
    assert norm.item() == pytest.approx(exact, 1e-6)
    assert exact_norm(params).item() == pytest.approx(1.0, 1e-5)


def test_mixed_dtypes_promote():
    params = params_with_grads([5], torch.bfloat16) + params_with_grads([6], torch.float32)
    assert fused_optim.clip_grad_norm_(params, 1.0).dtype == torch.float32
    half = params_with_grads([5], torch.bfloat16) + params_with_grads([6], torch.float16)
    assert fused_optim.clip_grad_norm_(half, 1.0).dtype == torch.float32


def test_a_gradient_whose_storage_was_freed():
    """torch's own function says so, instead of anyone reading beyond it."""
    (param,) = params_with_grads([100])
    param.grad.untyped_storage().resize_(40)
    assert "reaches beyond its storage" in _C.grad_norm([param.grad], 2.0)


def test_gradients_that_the_extension_is_handed_by_mistake():
    assert "no list" in _C.grad_norm((torch.zeros(3),), 2.0)
    assert "another type" in _C.grad_norm(["text"], 2.0)
    assert isinstance(_C.grad_norm([torch.zeros(3, device="meta")], 2.0), str)
    assert isinstance(_C.grad_norm([torch.zeros(3, dtype=torch.int32)], 2.0), str)
    leaf = torch.zeros(3, requires_grad=True)
    assert "autograd" in _C.grad_norm([leaf * 1], 2.0)


@pytest.mark.parametrize("how", ["one tensor", "overlapping views", "NumPy"])
def test_gradients_that_share_memory(how):
    """Two threads would scale the shared elements, each or both: torch's function scales them as
    often as they are there."""
    results = []
    for clip in (fused_optim.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        params = [Parameter(torch.zeros(1 << 19)) for _ in range(4)]
        memory = torch.linspace(0, 1, (1 << 19) + 1)
        for i, p in enumerate(params):
            p.grad = memory[:-1] if how == "one tensor" else memory[i % 2 :][: 1 << 19]
            if how == "NumPy":  # each view has a storage of its own
                p.grad = torch.from_numpy(p.grad.numpy())
        results.append((clip(params, 1.0), memory))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=0)
