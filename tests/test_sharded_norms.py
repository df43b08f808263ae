"""Norms over all ranks: the whole tensors', the same bits everywhere, and no rank waits in vain."""

import math
import warnings

import pytest
import torch
import torch.distributed as dist
from ranks import ranks_of
from sharded import assert_same, line, make, model_with_gradients, placed, set_grads, snapshot
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter
from twins import FUSED

import fused_optim

pytestmark = pytest.mark.process
#: Seconds, within which a rank that waits for another one is found out.
LIMIT = 20

two = ranks_of(2, LIMIT)
four = ranks_of(4, LIMIT)


def rank():
    return dist.get_rank()


def norm_of(grads, kind=2.0):
    return torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in grads]), kind).item()


def assert_same_bits_everywhere(tensor):
    bits = tensor.reshape(1).to(torch.float64).view(torch.int64)
    others = [torch.empty_like(bits) for _ in range(dist.get_world_size())]
    dist.all_gather(others, bits)
    assert all(torch.equal(bits, other) for other in others)


def clips_by_the_whole_norm(dtype):
    for cls in FUSED:
        params, plain = make(line(), dtype=dtype)
        ours = cls(params, lr=0.01, max_grad_norm=0.5)
        # The same shards, clipped by hand.
        twin = cls(plain, lr=0.01)
        for i in range(3):
            grads = set_grads(params, plain, seed=i)
            ours.step()
            assert ours.fallback_reason is None
            norm = norm_of(grads)
            assert ours.grad_norm.item() == pytest.approx(norm, rel=1e-12)
            assert_same_bits_everywhere(ours.grad_norm)
        del twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_whole_norm(two, dtype):
    two.run(clips_by_the_whole_norm, dtype)


def clipped_as_torch_does():
    params, _ = make(line())
    others, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)
    theirs = torch.optim.AdamW(others, lr=0.1)
    for i in range(3):
        set_grads(params, seed=i)
        set_grads(others, seed=i)
        ours.step()
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.to_local(), q.to_local())


def test_clipping_is_torchs(two):
    two.run(clipped_as_torch_does)


def gradients_on_some_ranks(which):
    """`which`: for each rank the parameters that have one."""
    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5, skip_nonfinite=True)
    for i in range(3):
        set_grads(params, seed=i)
        for number, p in enumerate(params):
            if number not in which[rank()]:
                p.grad = None
        ours.step()
        assert ours.fallback_reason is None
        assert_same_bits_everywhere(ours.grad_norm)
        squares = sum(
            p.grad.to_local().double().square().sum()
            for p in params
            if p.grad is not None and (rank() == 0 or p.placements[0].is_shard())
        )
        total = torch.as_tensor(squares, dtype=torch.float64).reshape(1)
        dist.all_reduce(total)
        assert ours.grad_norm.item() == pytest.approx(total.sqrt().item(), rel=1e-12)
    assert all((p in ours.state) == (i in which[rank()]) for i, p in enumerate(params))


@pytest.mark.parametrize("which", [((0, 1, 2, 3, 4), ()), ((), (0, 1)), ((0, 2), (1, 2, 3))])
def test_gradients_on_some_ranks(two, which):
    two.run(gradients_on_some_ranks, which)


def fails_together(path):
    options = {"foreach": True} if path == "torch" else {}
    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5, **options)
    set_grads(params)
    ours.step()
    if rank() == 1:
        ours.state[params[1]]["exp_avg"] = torch.zeros(3)
    before = snapshot(ours)
    match = "parameter 1: 'exp_avg'" if rank() == 1 else "met with an error on rank 1"
    with pytest.raises(RuntimeError, match=match):
        ours.step()
    assert_same(snapshot(ours), before)
    if rank() == 1:
        ours.state[params[1]]["exp_avg"] = torch.zeros_like(params[1])
    ours.step()


@pytest.mark.parametrize("path", ["kernels", "torch"])
def test_a_bad_state_on_one_rank(two, path):
    two.run(fails_together, path)


class Interrupts:
    """A number that takes Ctrl-C to read."""

    def __float__(self):
        raise KeyboardInterrupt


def raises_on_one_rank(how):
    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    ours.step()
    before = snapshot(ours)
    if rank() == 0 and how == "interrupt":
        ours.param_groups[0]["lr"] = Interrupts()
    if rank() == 0 and how == "found_inf":
        ours.found_inf = "none"

    def closure():
        if rank() == 0 and how == "closure":
            raise KeyError

    with pytest.raises(
        (KeyboardInterrupt, KeyError, TypeError, ValueError, RuntimeError)
    ) as raised:
        ours.step(closure)
    if rank() == 1:
        assert "met with an error on rank 0" in str(raised.value)
    ours.param_groups[0]["lr"] = 0.1
    ours.__dict__.pop("found_inf", None)
    assert_same(snapshot(ours), before)
    ours.step()


@pytest.mark.parametrize("how", ["interrupt", "found_inf", "closure"])
def test_whatever_raises_on_one_rank(two, how):
    two.run(raises_on_one_rank, how)


def one_rank_cannot_take_torchs_step():
    """Rank 0's step is torch's; rank 1 would, but torch can't have its state's dtype."""
    params, _ = make(line(), dtype=torch.bfloat16)
    table = Parameter(torch.ones(6, 2, dtype=torch.bfloat16))
    ours = fused_optim.SGD([*params, table], lr=0.1, momentum=0.9, max_grad_norm=0.5)
    set_grads(params)
    dense = torch.ones(6, 2, dtype=torch.bfloat16)
    table.grad = dense.to_sparse(1) if rank() == 0 else dense
    if rank() == 1:
        ours.state_dtype = torch.float32
    before = snapshot(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError):
            ours.step()
    assert_same(snapshot(ours), before)


def test_torchs_step_is_agreed_on(two):
    two.run(one_rank_cannot_take_torchs_step)


def replicas_on_one_rank():
    """A replicated parameter whose gradient is on the second rank alone counts all the same."""
    param = Parameter(placed(torch.ones(4), line(), [Replicate()]))
    ours = fused_optim.SGD([param], lr=1.0, max_grad_norm=1.0, skip_nonfinite=True)
    if rank() == 1:
        param.grad = placed_here(torch.full((4,), 50.0), param)
    ours.step()
    assert ours.grad_norm.item() == pytest.approx(100.0)
    if rank() == 1:
        assert (param.detach().to_local() - 1).norm().item() == pytest.approx(1.0, rel=1e-4)
        param.grad = placed_here(torch.full((4,), math.nan), param)
    before = param.to_local().clone()
    ours.step()
    assert torch.equal(param.to_local(), before)
    assert ours.skipped_steps.item() == 1


def placed_here(local, param):
    return DTensor.from_local(local, param.device_mesh, param.placements, run_check=False)


def test_replicas_on_one_rank(two):
    two.run(replicas_on_one_rank)


def similar_parts_beside_dtensors():
    """Plain parts of one tensor, whose norms are nearly the same, are no replicas."""
    params, _ = make(line())
    part = Parameter(torch.ones(10_000))
    set_grads(params)
    part.grad = torch.randn(10_000, generator=torch.Generator().manual_seed(rank()))
    ours = fused_optim.SGD([*params, part], lr=0.1, max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="norm_group"):
        ours.step()
    whole = [p.grad.full_tensor() for p in params]
    parts = [torch.empty(10_000) for _ in range(2)]
    dist.all_gather(parts, part.grad)
    ours.norm_group = dist.group.WORLD
    ours.step()
    assert ours.grad_norm.item() == pytest.approx(norm_of([*whole, *parts]), rel=1e-9)


def test_similar_parts_are_no_replicas(two):
    two.run(similar_parts_beside_dtensors)


class Group(dict):
    """Not for the kernels."""


def groups_of_other_types():
    for make_group in (Group, lambda group: {**group, "params": tuple(group["params"])}):
        params, _ = make(line())
        ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=0.5)
        set_grads(params)
        whole = norm_of([p.grad.full_tensor() for p in params])
        ours.param_groups = [make_group(group) for group in ours.param_groups]
        if rank() == 0:
            for p in params:
                p.grad = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours.step()
        assert ours.grad_norm.dtype == torch.float64
        assert_same_bits_everywhere(ours.grad_norm)
        assert 0 < ours.grad_norm.item() <= whole


def test_groups_of_other_types(two):
    two.run(groups_of_other_types)


def partial_parameter():
    from torch.distributed.tensor import Partial

    param = Parameter(DTensor.from_local(torch.ones(4), line(), [Partial()], run_check=False))
    param.grad = DTensor.from_local(torch.ones(4), line(), [Partial()], run_check=False)
    ours = fused_optim.SGD([param], lr=0.1, max_grad_norm=0.5)
    with pytest.raises(RuntimeError, match="placed as.*Partial"):
        ours.step()
    assert torch.equal(param.to_local(), torch.ones(4))


def test_partial_parameters_have_no_norm(two):
    two.run(partial_parameter)


def sparse_on_one_rank():
    """A plain table beside DTensors; its gradient is sparse on one rank alone."""
    params, _ = make(line())
    table = Parameter(torch.ones(6, 2))
    ours = fused_optim.SGD([*params, table], lr=0.1, max_grad_norm=0.5)
    grads = set_grads(params)
    dense = torch.zeros(6, 2)
    dense[2] = 3.0
    table.grad = dense.to_sparse(1) if rank() == 1 else dense
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.step()
    assert ours.fallback_reason is not None
    assert_same_bits_everywhere(ours.grad_norm)
    norm = norm_of([*grads, dense])
    assert ours.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(table.detach(), 1 - 0.1 * dense * (0.5 / norm))


def test_a_sparse_gradient_on_one_rank(two):
    two.run(sparse_on_one_rank)


def overflows_on_one_rank(options):
    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, **options)
    set_grads(params)
    ours.step()
    before = snapshot(ours)
    ours.found_inf = torch.tensor(float(rank() == 1))
    ours.step()
    assert_same(snapshot(ours), before)
    ours.found_inf = torch.tensor(0.0)
    if "skip_nonfinite" in options:
        if rank() == 1:
            params[0].grad.to_local()[0] = math.nan
        ours.step()
        assert_same(snapshot(ours), before)
        assert ours.skipped_steps.item() == 2
        set_grads(params)
    ours.step()
    assert all(ours.state[p]["step"] == 2 for p in params)


@pytest.mark.parametrize(
    "options",
    [{"max_grad_norm": 0.5}, {"skip_nonfinite": True}, {"skip_nonfinite": True, "foreach": True}],
)
def test_an_overflow_on_one_rank(two, options):
    two.run(overflows_on_one_rank, options)


def plain_shards_over_a_group():
    """This rank's parameters are its own."""
    param = Parameter(torch.full((3,), 1.0))
    ours = fused_optim.SGD([param], lr=0.1, max_grad_norm=1.0, norm_group=dist.group.WORLD)
    param.grad = torch.full((3,), float(rank() + 1))
    ours.step()
    norm = math.sqrt(3 * 1 + 3 * 4)
    assert ours.grad_norm.item() == pytest.approx(norm)
    torch.testing.assert_close(param.detach(), 1 - 0.1 * param.grad / norm)
    if rank() == 1:
        param.grad = None
    ours.step()
    assert ours.grad_norm.item() == pytest.approx(math.sqrt(3))
    assert_same_bits_everywhere(ours.grad_norm)


def test_plain_shards_over_a_group(two):
    two.run(plain_shards_over_a_group)


def zero_redundancy():
    model = model_with_gradients()
    norm = norm_of([p.grad for p in model.parameters()])
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=fused_optim.AdamW, lr=0.1,
        max_grad_norm=0.5, norm_group=dist.group.WORLD,
    )  # fmt: skip
    optimizer.step()
    assert optimizer.optim.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    other = model_with_gradients()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    torch.optim.AdamW(other.parameters(), lr=0.1).step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    with pytest.raises(RuntimeError, match="within ZeroRedundancyOptimizer.*norm_group"):
        optimizer.optim.norm_group = None
        optimizer.optim.step()


def fsdp1():
    for use_orig_params in (False, True):
        plain = model_with_gradients()
        norm = norm_of([p.grad for p in plain.parameters()])
        plain.zero_grad()
        model = FullyShardedDataParallel(
            plain, device_id=torch.device("cpu"), use_orig_params=use_orig_params
        )
        optimizer = fused_optim.AdamW(
            model.parameters(), lr=0.1, max_grad_norm=0.5, norm_group=dist.group.WORLD
        )
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        assert optimizer.fallback_reason is None
        assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("check", [zero_redundancy, fsdp1], ids=lambda check: check.__name__)
def test_plain_shards_of_wrappers(two, check):
    two.run(check)


def meshes_of(kind):
    """(parameters, their mesh and placements) for each way to shard over four ranks."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp, whole, rows, columns = grid["dp"], grid["tp"], [Replicate()], [Shard(0)], [Shard(1)]
    return {
        "hsdp": [(grid, whole + rows)],
        "tp": [(tp, columns), (tp, whole)],
        "fsdp and tp": [(grid, rows + rows), (grid, rows + columns), (dp, rows)],
        "mixed": [(line(), rows), (grid, whole + whole), (tp, rows), None],
        "line and dp": [(dp, columns), (line(), rows)],
    }[kind]


def on_meshes(kind, with_plain):
    shapes = [(7, 6), (5, 4), (8, 8), (3, 2)]
    where = meshes_of(kind)
    tensors = [torch.randn(s, generator=torch.Generator().manual_seed(3)) for s in shapes]
    params = [
        Parameter(t.clone() if w is None else placed(t, *w))
        for t, w in zip(tensors, where, strict=False)
    ]
    if with_plain:
        params.append(Parameter(torch.ones(3)))
    for options in ({}, {"foreach": True}):
        ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5, **options)
        grads = set_grads(params)
        whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in params]
        norm = norm_of(whole)
        assert norm == pytest.approx(norm_of(grads))
        ours.step()
        assert (ours.fallback_reason is None) == (not options)
        assert ours.grad_norm.item() == pytest.approx(norm, rel=1e-12 if not options else 1e-6)
        assert_same_bits_everywhere(ours.grad_norm)
        for kind_of_norm in (1.0, 2.0, 3.0, math.inf):
            set_grads(params)
            found = fused_optim.clip_grad_norm_(params, 0.5, kind_of_norm)
            expected = norm_of(whole, kind_of_norm)
            assert found.item() == pytest.approx(expected, rel=1e-6)
            factor = min(1.0, 0.5 / (expected + 1e-6))
            for p, g in zip(params, whole, strict=True):
                grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                torch.testing.assert_close(grad, g * factor)


@pytest.mark.parametrize("kind", ["hsdp", "tp", "fsdp and tp", "mixed", "line and dp"])
@pytest.mark.parametrize("with_plain", [False, True])
def test_meshes(four, kind, with_plain):
    four.run(on_meshes, kind, with_plain)


def fails_across_meshes(kind):
    params = [Parameter(placed(torch.ones(4, 4), *w)) for w in meshes_of(kind)]
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    ours.step()
    if rank() == 3:
        ours.state[params[-1]]["exp_avg"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="'exp_avg'" if rank() == 3 else "rank 3"):
        ours.step()


@pytest.mark.parametrize("kind", ["hsdp", "fsdp and tp", "line and dp"])
def test_errors_reach_all_ranks_of_meshes(four, kind):
    four.run(fails_across_meshes, kind)


def other_placements_on_some_ranks():
    """Ranks that share a line, of which two share another mesh as well."""
    shared = Parameter(placed(torch.ones(8), line(), [Shard(0)]))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    params = [shared]
    if rank() < 2:
        params.append(Parameter(placed(torch.ones(4), grid["dp"], [Shard(0)])))
    else:
        placed(torch.ones(4), grid["dp"], [Shard(0)])
    ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0)
    set_grads(params)
    with pytest.raises(RuntimeError, match="placed differently"):
        ours.step()


def test_other_placements_on_some_ranks(four):
    four.run(other_placements_on_some_ranks)


def pipeline_stages():
    """Two stages, each sharded over its own two ranks."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    stage = rank() // 2
    param = Parameter(placed(torch.ones(5, 2), grid["dp"], [Shard(0)]))
    extra = [Parameter(placed(torch.ones(3), grid["dp"], [Replicate()]))] if stage else []
    params = [param, *extra]
    ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0, norm_group=dist.group.WORLD)
    for p in params:
        p.grad = placed(torch.full(p.shape, float(stage + 1)), p.device_mesh, p.placements)
    ours.step()
    norm = math.sqrt(10 * 1 + 10 * 4 + 3 * 4)
    assert ours.grad_norm.item() == pytest.approx(norm, rel=1e-12)
    assert_same_bits_everywhere(ours.grad_norm)
    # Without a group each stage has its own.
    ours.norm_group = None
    ours.step()
    assert ours.grad_norm.item() == pytest.approx(math.sqrt(52 if stage else 10), rel=1e-12)
    # An error in one stage is known in the other.
    ours.norm_group = dist.group.WORLD
    if rank() == 0:
        param.grad._local_tensor = torch.zeros(1)
    with pytest.raises(RuntimeError, match="'grad'" if rank() == 0 else "rank 0"):
        ours.step()


def test_pipeline_stages(four):
    four.run(pipeline_stages)


def distinct_parts_without_a_group():
    """Each pair of ranks has an expert of its own, which nothing says; all share a line."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep", "dp"))
    expert = Parameter(placed(torch.ones(4), grid["dp"], [Shard(0)]))
    shared = Parameter(placed(torch.ones(8), line(), [Shard(0)]))
    ours = fused_optim.SGD([shared, expert], lr=0.1, max_grad_norm=1.0)
    for p in (shared, expert):
        p.grad = placed(torch.ones(p.shape), p.device_mesh, p.placements)
    expert.grad.to_local().mul_(1 + rank() // 2)
    with pytest.raises(RuntimeError, match="norm_group"):
        ours.step()
    assert torch.equal(shared.to_local(), torch.ones(2))


def test_distinct_parts_are_no_replicas(four):
    four.run(distinct_parts_without_a_group)


def what_a_group_is():
    from torch import multiprocessing  # noqa: F401

    param = Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="norm_group"):
        fused_optim.SGD([param], lr=0.1, norm_group="world")
    with pytest.raises(ValueError, match="norm_group"):
        fused_optim.SGD([{"params": [param], "norm_group": dist.group.WORLD}], lr=0.1)
    ours = fused_optim.SGD([param], lr=0.1, max_grad_norm=1.0, norm_group=dist.group.WORLD)
    import copy
    import pickle

    assert copy.deepcopy(ours).norm_group is dist.group.WORLD
    assert copy.copy(ours).norm_group is dist.group.WORLD
    assert pickle.loads(pickle.dumps(ours)).norm_group is None
    assert "norm_group" not in ours.defaults and "norm_group" not in ours.param_groups[0]
    assert "norm_group" not in str(ours.state_dict())
    params, _ = make(line())
    alone = [dist.new_group([0]), dist.new_group([1])][rank()]
    ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0, norm_group=alone)
    set_grads(params)
    with pytest.raises(RuntimeError, match="norm_group lacks ranks"):
        ours.step()


def test_the_group_as_an_option(two):
    two.run(what_a_group_is)


def test_partial_is_known_to_all(two):
    two.run(partial_gradients_on_one_rank)


def partial_gradients_on_one_rank():
    from torch.distributed.tensor import Partial

    params, _ = make(line(), [(8, 4)])
    ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    if rank() == 1:
        params[0].grad = DTensor.from_local(torch.ones(8, 4), line(), [Partial()])
    before = params[0].to_local().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="placed differently"):
            ours.step()
    assert torch.equal(params[0].to_local(), before)


def closure_changes_what_is_asked():
    """A 2-norm instead of the largest value, and one more parameter in it."""
    params, _ = make(line())
    ours = fused_optim.SGD(params[:-1], lr=0.1, skip_nonfinite=True)
    whole = set_grads(params)

    def closure():
        ours.max_grad_norm = 0.5
        ours.add_param_group({"params": params[-1:]})

    ours.step(closure)
    assert ours.grad_norm.item() == pytest.approx(norm_of(whole), rel=1e-12)


def test_a_closure_that_changes_what_is_asked(two):
    two.run(closure_changes_what_is_asked)
