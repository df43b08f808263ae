"""Clipping, skipping, zeroing and averaging inside step(): what torch's calls around it do."""

import copy
import inspect
import itertools
import math
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from twins import (
    CASES,
    SUPPORTED_ISAS,
    TORCH,
    assert_same_values,
    assert_unchanged,
    case_id,
    copies,
    grad_scaler,
    make_params,
    not_on_cuda,
    same_bits,
    set_grads,
    snapshot,
)

import fused_optim
import fused_optim._C as _C
from fused_optim.optimizer import FUSED_CLASSES

SHAPES = [(5, 7), (33,), (), (2000,), (0,)]
ALL = {"max_grad_norm": 0.5, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.75}
SUBSETS = [dict(chosen) for n in range(1, 5) for chosen in itertools.combinations(ALL.items(), n)]
#: The kernels, and what takes the parent's path: asked for, or parameters not dense in memory.
PATHS = ["kernels", "foreach", "sliced"]
#: Every set of options in the kernels, one of each class elsewhere: the update there is torch's.
CASES_AND_PATHS = [(case, "kernels") for case in CASES] + [
    (case, path) for case in dict(CASES).items() for path in PATHS[1:]
]


def case_and_path_id(value):
    return value if isinstance(value, str) else case_id(value)


class TorchRecipe:
    """torch's calls, in the order in which training code makes them."""

    def __init__(
        self, params, optimizer,
        max_grad_norm=None, skip_nonfinite=False, zero_grads=False, ema_decay=None,
    ):  # fmt: skip
        self.params, self.optimizer = params, optimizer
        self.max_grad_norm, self.skip_nonfinite = max_grad_norm, skip_nonfinite
        self.zero_grads = zero_grads
        self.averaged = self.grad_norm = None
        self.skipped_steps = 0
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averaged = AveragedModel(torch.nn.ParameterList(params), multi_avg_fn=average)

    def step(self):
        grads = [p.grad for p in self.params if p.grad is not None]
        is_finite = all(grad.isfinite().all() for grad in grads)
        if self.max_grad_norm is not None:
            # The update's own copies: p.grad stays as it is.
            for p in self.params:
                p.grad = None if p.grad is None else p.grad.clone()
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        if self.skip_nonfinite and not is_finite:
            self.skipped_steps += 1
        else:
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(torch.nn.ParameterList(self.params))
        if self.zero_grads:
            self.optimizer.zero_grad(set_to_none=False)

    @property
    def averages(self):
        return list(self.averaged.module.parameters())


def sliced(p):
    """A parameter with the same values that is not dense in memory."""
    wide = torch.zeros(*p.shape, 3, dtype=p.dtype)
    wide[..., 1] = p.detach()
    return wide[..., 1].detach().requires_grad_()


def recipes(cls, options, asked, path="kernels", shapes=SHAPES, dtype=torch.float64):
    """Our optimizer with the options asked for, and torch's calls on equal parameters."""
    params = make_params(shapes, dtype)
    others = copies(params)
    if path == "sliced":
        params = [sliced(p) for p in params]
    foreach = {"foreach": True} if path == "foreach" else {}
    ours = cls(params, **options, **foreach, **asked)
    foreach = {"foreach": path == "foreach"}  # whose numbers, of ASGD, are not the for-loop's
    theirs = TorchRecipe(others, TORCH[cls](others, **options, **foreach), **asked)
    return params, others, ours, theirs


def assert_same_averages(ours, theirs, rtol=1e-12, atol=1e-12):
    params = [p for group in ours.param_groups for p in group["params"]]
    for p, average in zip(params, theirs.averages, strict=True):
        mine = ours.state[p]["ema"] if "ema" in ours.state.get(p, {}) else p.detach()
        torch.testing.assert_close(mine, average.detach(), rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_all_four_over_20_steps_with_planted_infs(case, path):
    params, others, ours, theirs = recipes(*case, ALL, path)
    for i in range(20):
        set_grads(params, others, seed=i)
        if i in (0, 5, 6, 13):  # the very first step is skipped, and two in a row
            value = math.nan if i == 5 else math.inf
            for p in (params[1], others[1]):
                p.grad[i] = value
        ours.step()
        theirs.step()
        assert not any(p.grad.any() for p in params)
        norm = theirs.grad_norm
        torch.testing.assert_close(
            ours.grad_norm.to(norm), norm, rtol=1e-12, atol=0, equal_nan=True
        )
        assert_same_values(params, others)
        if i > 0:
            assert_same_averages(ours, theirs)
    assert (ours.fallback_reason is None) == (path == "kernels")
    assert ours.skipped_steps.item() == theirs.skipped_steps == 4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("asked", SUBSETS, ids=lambda o: "+".join(o))
def test_each_combination(optimizer_class, asked, path):
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, path)
    for i in range(4):
        set_grads(params, others, seed=i)
        grads = [p.grad.clone() for p in params]
        ours.step()
        theirs.step()
        for p, grad in zip(params, grads, strict=True):
            assert same_bits(p.grad, torch.zeros_like(grad) if "zero_grads" in asked else grad)
        assert_same_values(params, others)
        if "ema_decay" in asked:
            assert_same_averages(ours, theirs)
    assert all(("ema" in s) == ("ema_decay" in asked) for s in ours.state.values())
    assert (ours.grad_norm is None) == ("max_grad_norm" not in asked)


@pytest.mark.parametrize("path", PATHS)
def test_with_grad_scaler(optimizer_class, path):
    """The norm is that of the unscaled gradients; a step that overflows is skipped and zeroed."""
    asked = {**ALL, "skip_nonfinite": False}
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, path, [(6, 4)])
    scalers = [grad_scaler(init_scale=64.0, growth_interval=4) for _ in range(2)]
    for i in range(12):
        factor = torch.randn(6, 4, dtype=torch.float64)
        if i in (0, 7):
            factor[2, 3] = math.inf
        scalers[0].scale((params[0] * factor).sum()).backward()
        scalers[0].step(ours)
        scalers[0].update()
        scalers[1].scale((others[0] * factor).sum()).backward()
        scalers[1].unscale_(theirs.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(others, asked["max_grad_norm"])
        before = scalers[1].get_scale()
        scalers[1].step(theirs.optimizer)
        scalers[1].update()
        if scalers[1].get_scale() >= before:
            theirs.averaged.update_parameters(torch.nn.ParameterList(others))
            torch.testing.assert_close(ours.grad_norm.to(norm), norm, rtol=1e-12, atol=0)
        assert not ours.grad_norm.isfinite() or norm.isfinite()
        theirs.optimizer.zero_grad()
        assert not params[0].grad.any()
        assert_same_values(params, others)
        if i > 0:
            assert_same_averages(ours, theirs)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert ours.skipped_steps.item() == 0  # nobody asked to count


def test_overflows_of_amp_are_counted_with_the_others(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"skip_nonfinite": True})
    for found_inf in (0.0, 1.0, 2.0):
        set_grads(params, seed=0)
        ours.grad_scale, ours.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        ours.step()
    assert ours.skipped_steps.item() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes(optimizer_class, dtype):
    """Close to torch's calls in the same dtype: two roundings more or less."""
    asked = {**ALL, "max_grad_norm": 100.0}
    params, others, ours, theirs = recipes(optimizer_class, {}, asked, dtype=dtype)
    for i in range(3):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
    eps = torch.finfo(dtype).eps
    # A sign near zero decides a whole step of Rprop and Lion; the other rules are smooth.
    if optimizer_class not in (fused_optim.Rprop, fused_optim.Lion):
        assert_same_values(params, others, rtol=32 * eps, atol=32 * eps)
        assert_same_averages(ours, theirs, rtol=32 * eps, atol=32 * eps)
    assert ours.fallback_reason is None
    assert all(s["ema"].dtype == dtype for s in ours.state.values())


def test_the_norm_spans_groups(optimizer_class):
    params = make_params([(5,), (6,), (7,)], torch.float64)
    params[2].grad = None
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "maximize": True}]
    optimizer = optimizer_class(groups, max_grad_norm=1.0)
    assert optimizer.grad_norm is None
    set_grads(params, seed=0)
    params[2].grad = None
    exact = torch.cat([p.grad for p in params[:2]]).norm()
    optimizer.step()
    assert optimizer.grad_norm.dtype == torch.float64 and optimizer.grad_norm.dim() == 0
    torch.testing.assert_close(optimizer.grad_norm, exact, rtol=1e-14, atol=0)


def test_gradients_are_only_read(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"max_grad_norm": 1e-3, "ema_decay": 0.5})
    set_grads(params, seed=0)
    versions = [p.grad._version for p in params]
    ours.step()
    assert [p.grad._version for p in params] == versions


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_a_skipped_step_changes_nothing(case, path):
    cls, options = case
    params, _, ours, _ = recipes(cls, options, {"skip_nonfinite": True, "ema_decay": 0.5}, path)
    for first in (True, False):
        set_grads(params, seed=0)
        if not first:
            ours.step()
        before = snapshot(ours)
        for value in (math.inf, -math.inf, math.nan):
            params[3].grad[1234] = value
            grads = [p.grad.clone() for p in params]
            ours.step()
            assert_unchanged(ours, before)
            assert all(same_bits(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert ours.skipped_steps.item() == 6
    assert ours.grad_norm is None


def test_large_but_finite_gradients_are_not_skipped(optimizer_class):
    """Whose squares overflow even float64."""
    params = make_params([(4,)], torch.float64)
    optimizer = optimizer_class(params, skip_nonfinite=True)
    before = params[0].detach().clone()
    params[0].grad = torch.full((4,), 1e154, dtype=torch.float64)
    optimizer.step()
    assert optimizer.skipped_steps.item() == 0
    assert not torch.equal(params[0].detach(), before)


def test_zeroing_keeps_the_memory_and_bumps_the_version(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"zero_grads": True})
    for _ in range(2):
        set_grads(params, seed=0)
        grads = [p.grad for p in params]
        pointers, versions = ([f(g) for g in grads] for f in (torch.Tensor.data_ptr, version))
        ours.step()
        assert all(p.grad is g and not g.any() for p, g in zip(params, grads, strict=True))
        assert [g.data_ptr() for g in grads] == pointers
        assert all(version(g) > v for g, v in zip(grads, versions, strict=True))


def version(tensor):
    return tensor._version


@pytest.mark.parametrize("asked", [ALL, {"zero_grads": True}], ids=["all", "zero_grads"])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "reversed dims", "offset"])
def test_gradients_in_any_layout(optimizer_class, layout, asked):
    params, others, ours, theirs = recipes(
        optimizer_class, {}, asked, shapes=[(40, 30), (7, 20, 5)]
    )
    for i in range(3):
        set_grads(params, others, seed=i)
        around = []
        for p in params:
            shape = tuple(p.shape)
            if layout == "transposed":
                whole = torch.full(shape[::-1], 7.0, dtype=p.dtype)
                view = whole.permute(*reversed(range(p.dim())))
            elif layout == "sliced":
                whole = torch.full((*shape, 3), 7.0, dtype=p.dtype)
                view = whole[..., 1]
            elif layout == "reversed dims":
                whole = torch.full((shape[-1], *shape[:-1]), 7.0, dtype=p.dtype)
                view = whole.movedim(0, -1)
            else:
                whole = torch.full((p.numel() + 3,), 7.0, dtype=p.dtype)
                view = whole[1:-2].view(shape)
            around.append((whole, whole.numel() - p.numel()))
            p.grad = view.copy_(p.grad)
        ours.step()
        theirs.step()
        assert not any(p.grad.any() for p in params)
        assert all((whole == 7).sum() == rest for whole, rest in around)
        assert_same_values(params, others)
        if "ema_decay" in asked:
            assert_same_averages(ours, theirs)
    assert ours.fallback_reason is None


def test_averages_and_states_in_any_layout(optimizer_class):
    """As checkpoints of another memory format bring them."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(40, 30)])
    for i in range(3):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
        state = ours.state[params[0]]
        state["ema"] = state["ema"].t().contiguous().t()
    assert ours.fallback_reason is None
    assert_same_values(params, others)
    assert_same_averages(ours, theirs)


def test_an_expanded_gradient_cannot_be_zeroed(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"zero_grads": True}, shapes=[(3,), (4,)])
    set_grads(params, seed=0)
    params[1].grad = torch.ones(1, dtype=torch.float64).expand(4)
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: 'grad' has elements that share"):
        ours.step()
    assert_unchanged(ours, before)
    assert params[0].grad.any()


def test_two_parameters_with_one_gradient(optimizer_class):
    """One must not be zeroed before the other is stepped."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(3,), (3,)])
    grad = torch.randn(3, dtype=torch.float64)
    for p in (*params, *others):
        p.grad = grad.clone()
    params[1].grad = params[0].grad
    ours.step()
    theirs.step()
    assert_same_values(params, others)
    assert not params[0].grad.any()


def test_gradients_with_a_graph(optimizer_class):
    """Of backward(create_graph=True): detached and zeroed, as zero_grad does."""
    params, others, ours, theirs = recipes(optimizer_class, {}, ALL, shapes=[(3,)])
    for p in (*params, *others):
        (p**3).sum().backward(create_graph=True)
    ours.step()
    torch.nn.utils.clip_grad_norm_(others, 0.5)
    theirs.optimizer.step()
    theirs.optimizer.zero_grad(set_to_none=False)
    assert_same_values(params, others)
    assert not params[0].grad.requires_grad and not params[0].grad.any()


def test_sparse_gradients():
    for name in ("SGD", "Adagrad"):
        cls = getattr(fused_optim, name)
        params, others, ours, theirs = recipes(cls, {"lr": 0.1}, ALL, shapes=[(6, 2), (3,)])
        theirs.max_grad_norm = None
        for i in range(4):
            set_grads(params, others, seed=i)
            indices = torch.tensor([[0, 3, 3]])
            values = torch.full((3, 2), math.inf if i == 2 else 1.0 + i, dtype=torch.float64)
            sparse = torch.sparse_coo_tensor(indices, values, (6, 2)).coalesce()
            norm = torch.cat([sparse.values().flatten(), params[1].grad]).norm()
            for p in (params[0], others[0]):
                p.grad = sparse.clone()
            coefficient = min(1.0, 0.5 / (norm.item() + 1e-6))
            for p in others:
                if i != 2:
                    p.grad = p.grad * coefficient
            theirs.optimizer.zero_grad, zero = (lambda **_: None), theirs.optimizer.zero_grad
            if i != 2:
                theirs.optimizer.step()
                theirs.averaged.update_parameters(torch.nn.ParameterList(others))
            theirs.optimizer.zero_grad = zero
            ours.step()
            torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-14, atol=0)
            assert not any(p.grad.to_dense().any() for p in params)
            assert_same_values(params, others)
            assert_same_averages(ours, theirs)
        assert "sparse" in ours.fallback_reason
        assert ours.skipped_steps.item() == 1


@not_on_cuda("a CPU mesh")
def test_distributed_tensors():
    """Of which torch's own step takes care, and its functions of what surrounds it."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        params, others, _, theirs = recipes(fused_optim.AdamW, {}, ALL, shapes=[(8, 4), (5,)])
        params = [
            torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in params
        ]
        ours = fused_optim.AdamW(params, **ALL)
        for i in range(4):
            set_grads(others, seed=i)
            if i == 2:
                others[0].grad[0] = math.inf
            for p, q in zip(params, others, strict=True):
                p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
            ours.step()
            theirs.step()
            assert_same_values([p.full_tensor() for p in params], others)
            assert not any(p.grad.full_tensor().any() for p in params)
        with ours.ema_parameters():
            assert_same_values([p.full_tensor() for p in params], theirs.averages)
        assert ours.skipped_steps.item() == 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("path", PATHS)
def test_parameters_that_join_rest_and_return(optimizer_class, path):
    """AveragedModel averages all parameters at each step, stepped or not."""
    params, others, ours, theirs = recipes(
        optimizer_class, {}, {"ema_decay": 0.75}, path, [(3,), (4,), (5,)]
    )
    absent = [[1, 2], [2], [0, 2], [0], [], [1]]
    for i, indices in enumerate(absent):
        set_grads(params, others, seed=i)
        for index in indices:
            params[index].grad = others[index].grad = None
        ours.step()
        theirs.step()
        assert_same_values(params, others)
        assert_same_averages(ours, theirs)


@pytest.mark.parametrize(("case", "path"), CASES_AND_PATHS, ids=case_and_path_id)
def test_checkpoints_are_torchs(case, path):
    """With averages in the state, torch goes on as before; without them ours begins them anew."""
    cls, options = case
    params, others, ours, _ = recipes(cls, options, ALL, path, [(4, 3), (5,)])
    plain = TORCH[cls](others, foreach=path == "foreach", **options)
    for i in range(3):
        set_grads(params, seed=i)
        ours.step()
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    saved = copy.deepcopy(ours.state_dict())
    assert all(set(group) == set(g) for group, g in zip(
        saved["param_groups"], cls(copies(others), **options).state_dict()["param_groups"],
        strict=True,
    ))  # fmt: skip
    plain.load_state_dict(saved)
    again = copies(others)
    resumed = cls(again, **options, **ALL, **({"foreach": True} if path == "foreach" else {}))
    resumed.load_state_dict(copy.deepcopy(saved))
    for i in range(3, 6):
        set_grads(params, others, again, seed=i)
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        for optimizer in (ours, plain, resumed):
            optimizer.step()
        # torch gives the scalars of a loaded NAdam another dtype.
        assert_same_values(params, others, rtol=1e-6, atol=1e-6)
        assert_same_values(params, again)
    for p, q in zip(params, again, strict=True):
        torch.testing.assert_close(
            ours.state[p]["ema"], resumed.state[q]["ema"], rtol=1e-12, atol=1e-12
        )
    # And from torch: averages begin as the parameters are after the first step.
    third = copies(others)
    from_torch = cls(third, **options, ema_decay=0.5)
    state = plain.state_dict()
    for entry in state["state"].values():
        entry.pop("ema", None)
    from_torch.load_state_dict(copy.deepcopy(state))
    set_grads(third, seed=9)
    from_torch.step()
    assert all(same_bits(from_torch.state[p]["ema"], p.detach()) for p in third)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(5), "has shape"),
        (lambda: torch.zeros(4, dtype=torch.float16), "has dtype"),
        (lambda: torch.zeros(4, device="meta"), "is on meta"),
        (lambda: "text", "is no tensor"),
    ],
    ids=["shape", "dtype", "meta", "text"],
)
@pytest.mark.parametrize("has_grad", [True, False])
def test_a_corrupt_average(optimizer_class, make, message, has_grad):
    wrong = make()
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(3,), (4,)], dtype=torch.float32)
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[1]]["ema"] = wrong
    set_grads(params, seed=1)
    if not has_grad:
        params[1].grad = None
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match=f"group 0, parameter 1: 'ema' {message}"):
        ours.step()
    assert_unchanged(ours, before)
    if isinstance(wrong, torch.Tensor) and not wrong.is_meta:
        with (
            pytest.raises(RuntimeError, match=f"group 0, parameter 1: 'ema' {message}"),
            ours.ema_parameters(),
        ):
            pass
        assert_unchanged(ours, before)


def test_averages_that_lie_beyond_their_storage(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(100,)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[0]]["ema"].untyped_storage().resize_(80)
    set_grads(params, seed=1)
    with pytest.raises(RuntimeError, match="'ema' reaches beyond its storage"):
        ours.step()


def test_an_average_that_is_its_parameter(optimizer_class):
    """Overlapping memory goes through torch's operations."""
    params, _, ours, _ = recipes(optimizer_class, {}, {"ema_decay": 0.5}, shapes=[(4,)])
    set_grads(params, seed=0)
    ours.step()
    ours.state[params[0]]["ema"] = params[0].detach()
    ours.step()
    assert "overlap" in ours.fallback_reason


@pytest.mark.parametrize("fails", [False, True])
def test_ema_parameters(optimizer_class, fails):
    params, _, ours, theirs = recipes(optimizer_class, {}, {"ema_decay": 0.5})
    for i in range(3):
        set_grads(params, theirs.params, seed=i)
        ours.step()
        theirs.step()
    before = snapshot(ours)
    pointers = [p.data_ptr() for p in params]
    try:
        with ours.ema_parameters():
            assert_same_values(params, theirs.averages)
            assert [p.data_ptr() for p in params] == pointers
            if fails:
                raise KeyError("evaluation failed")
    except KeyError:
        assert fails
    assert_unchanged(ours, before)


def test_ema_parameters_refuses(optimizer_class):
    params, _, ours, _ = recipes(optimizer_class, {}, {"ema_decay": 0.5})
    set_grads(params, seed=0)
    before = snapshot(ours)
    with ours.ema_parameters():  # nothing has been stepped
        assert_unchanged(ours, before)
    ours.step()
    before = snapshot(ours)
    with ours.ema_parameters():
        with pytest.raises(RuntimeError, match="inside ema_parameters"):
            ours.step()
        with pytest.raises(RuntimeError, match="inside ema_parameters"), ours.ema_parameters():
            pass
    assert_unchanged(ours, before)
    plain = optimizer_class(params)
    with pytest.raises(RuntimeError, match="ema_decay"), plain.ema_parameters():
        pass


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_decays_from_0_to_1(optimizer_class, decay):
    params, others, ours, theirs = recipes(optimizer_class, {}, {"ema_decay": decay})
    for i in range(4):
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
    assert_same_averages(ours, theirs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("max_grad_norm", "a"),
        ("max_grad_norm", "1.0"),
        ("max_grad_norm", 1j),
        ("ema_decay", -0.1),
        ("ema_decay", 1.1),
        ("ema_decay", {}),
        ("ema_decay", math.nan),
        ("skip_nonfinite", 2),
        ("zero_grads", math.nan),
    ],
)
def test_bad_values(optimizer_class, name, value):
    with pytest.raises(ValueError, match=f"Invalid {name} value: {value}"):
        optimizer_class([torch.zeros(1)], **{name: value})
    optimizer = optimizer_class([torch.zeros(1)], **ALL)
    with pytest.raises(ValueError, match=f"Invalid {name} value: {value}"):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == ALL[name]


@pytest.mark.parametrize("value", [None, 0, 0.0, math.inf, torch.tensor(2.0)], ids=str)
def test_values_that_max_grad_norm_takes(optimizer_class, value):
    params = make_params([(3,)])
    optimizer = optimizer_class(params, max_grad_norm=value)
    set_grads(params, seed=0)
    optimizer.step()
    assert params[0].isfinite().all()
    assert (optimizer.grad_norm is None) == (value is None)


def test_the_signature_is_torchs_and_then_the_four(optimizer_class):
    parent = next(torch_cls for torch_cls, cls in FUSED_CLASSES.items() if cls is optimizer_class)
    theirs = list(inspect.signature(parent).parameters.values())
    ours = list(inspect.signature(optimizer_class).parameters.values())
    assert ours[: len(theirs)] == theirs
    assert [p.name for p in ours[len(theirs) :]] == list(ALL)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
    with pytest.raises(TypeError):
        optimizer_class([torch.zeros(1)], no_such_argument=1)


def test_a_users_subclass(optimizer_class):
    class Mine(optimizer_class):
        def __init__(self, params):
            super().__init__(params, **ALL)

    optimizer = Mine(make_params([(3,)]))
    assert {name: getattr(optimizer, name) for name in ALL} == ALL


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_keep_them(optimizer_class, how):
    params, _, ours, _ = recipes(optimizer_class, {}, ALL, shapes=[(3,)])
    params[0].grad = torch.full((3,), math.inf, dtype=torch.float64)
    ours.step()
    copied = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    assert {name: getattr(copied, name) for name in ALL} == ALL
    assert copied.skipped_steps.item() == 1 and copied.grad_norm.item() == math.inf
    (p,) = copied.param_groups[0]["params"]
    p.grad = torch.full((3,), math.inf, dtype=torch.float64)
    copied.step()
    assert copied.skipped_steps.item() == 2 and ours.skipped_steps.item() == 1


def test_they_may_change_between_steps(optimizer_class):
    params, others, ours, theirs = recipes(optimizer_class, {}, {})
    for i, norm in enumerate([None, 0.5, 0.1, None, math.inf]):
        ours.max_grad_norm = theirs.max_grad_norm = norm
        ours.zero_grads = theirs.zero_grads = i % 2 == 1
        set_grads(params, others, seed=i)
        ours.step()
        theirs.step()
        assert (not params[0].grad.any()) == (i % 2 == 1)
        assert_same_values(params, others)


def test_fuse_and_then_ask():
    params = make_params([(3,)])
    optimizer = fused_optim.fuse(torch.optim.Adam(params))
    assert {name: getattr(optimizer, name) for name in ALL} == dict.fromkeys(ALL) | {
        "skip_nonfinite": False, "zero_grads": False
    }  # fmt: skip
    optimizer.max_grad_norm = 0.5
    set_grads(params, seed=0)
    optimizer.step()
    assert optimizer.grad_norm.item() > 0


def test_steps_without_gradients(optimizer_class):
    _, _, ours, _ = recipes(optimizer_class, {}, ALL)
    before = snapshot(ours)
    ours.step()
    assert_unchanged(ours, before)
    assert ours.grad_norm.item() == 0 and ours.skipped_steps.item() == 0


@not_on_cuda("the host's kernels")
def test_one_result_on_every_instruction_set_and_thread_count(optimizer_class):
    results = []
    for isa, threads in itertools.product(SUPPORTED_ISAS, (1, 2, 5)):
        _C.set_isa(isa)
        torch.set_num_threads(threads)
        params = make_params([(100_003,), (64, 33), (3,)])
        optimizer = optimizer_class(params, **ALL)
        for i in range(2):
            set_grads(params, seed=i)
            optimizer.step()
        averages = [optimizer.state[p]["ema"] for p in params]
        results.append([p.detach() for p in params] + averages + [optimizer.grad_norm])
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_compiled_step_has_them():
    params, others, ours, theirs = recipes(fused_optim.AdamW, {}, ALL, shapes=[(3,)])
    step = torch.compile(ours.step, backend="eager")
    for i in range(2):
        set_grads(params, others, seed=i)
        step()
        theirs.step()
    assert ours.fallback_reason is None
    assert_same_values(params, others)
    assert_same_averages(ours, theirs)
