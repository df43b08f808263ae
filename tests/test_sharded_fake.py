"""Rank 5 of 8, alone, with torch's fake backend: gather, placements, states and errors."""

import timeit

import pytest
import torch
import torch.distributed as dist
from sharded import assert_same, snapshot
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore
from twins import all_options

import fused_optim

RANK, WORLD = 5, 8


@pytest.fixture(scope="module", autouse=True)
def rank_5_of_8():
    dist.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    yield
    dist.destroy_process_group()


def grid():
    return init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))


PLACEMENTS = [
    [Shard(0), Shard(0)],
    [Shard(0), Shard(1)],
    [Replicate(), Shard(1)],
    [_StridedShard(0, split_factor=4), Shard(0)],
    [Replicate(), Replicate()],
]


def sharded(placements, mesh=None, local_shape=(3, 2), shape=(24, 16)):
    local = torch.randn(local_shape)
    return DTensor.from_local(
        local, mesh or grid(), placements, run_check=False, shape=shape, stride=(shape[1], 1)
    )


def pair(placements, **options):
    param = Parameter(sharded(placements, **options))
    param.grad = sharded(placements, **options)
    plain = Parameter(param.detach().to_local().clone())
    plain.grad = param.grad.to_local().clone()
    return param, plain


@pytest.mark.parametrize("placements", PLACEMENTS, ids=str)
def test_placements(optimizer_class, placements):
    param, plain = pair(placements)
    ours = optimizer_class([param], **all_options(optimizer_class))
    twin = optimizer_class([plain], **all_options(optimizer_class))
    for _ in range(2):
        ours.step()
        twin.step()
    assert ours.fallback_reason is None
    assert_same(snapshot(ours), snapshot(twin))


def test_meshes_and_plain_tensors_in_one_group(optimizer_class):
    """Also a shard without elements, and a mesh that this rank is not in."""
    far = init_device_mesh("cpu", (8,))
    pairs = [
        pair([Shard(0), Shard(1)]),
        pair([Shard(0)], mesh=far),
        pair([Shard(0)], mesh=far, local_shape=(0, 16), shape=(4, 16)),
    ]
    loose = Parameter(torch.ones(3))
    loose.grad = torch.ones(3)
    other = Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    ours = optimizer_class([*(p for p, _ in pairs), loose], lr=0.01)
    twin = optimizer_class([*(q for _, q in pairs), other], lr=0.01)
    for _ in range(2):
        ours.step()
        twin.step()
    assert ours.fallback_reason is None
    assert_same(snapshot(ours), snapshot(twin))
    assert all(ours.state[p] == {} or ours.state[p].keys() for p, _ in pairs)


def placed_otherwise(state):
    param, _ = pair([_StridedShard(0, split_factor=4), Shard(0)])
    ours = fused_optim.AdamW([param], lr=0.1)
    ours.step()
    ours.state[param]["exp_avg_sq"] = state
    before = param.to_local().clone()
    with pytest.raises(RuntimeError, match="'exp_avg_sq' is placed as"):
        ours.step()
    assert torch.equal(param.to_local(), before)


def test_other_split_factors_and_orders_are_other_placements():
    placed_otherwise(sharded([_StridedShard(0, split_factor=2), Shard(0)]))
    placed_otherwise(sharded([Shard(0), Shard(0)]))
    placed_otherwise(sharded([Shard(0)], mesh=init_device_mesh("cpu", (8,))))


def test_equal_specs_of_other_objects():
    """As loading makes them."""
    param, plain = pair([Shard(0), Shard(0)])
    ours, twin = fused_optim.AdamW([param], lr=0.1), fused_optim.AdamW([plain], lr=0.1)
    ours.step()
    twin.step()
    for name in ("exp_avg", "exp_avg_sq"):
        state = ours.state[param][name]
        mesh = grid()
        assert mesh is not param.device_mesh and mesh == param.device_mesh
        ours.state[param][name] = DTensor.from_local(
            state.to_local(), mesh, [Shard(0), Shard(0)], run_check=False,
            shape=state.shape, stride=state.stride(),
        )  # fmt: skip
    ours.step()
    twin.step()
    assert ours.fallback_reason is None
    assert_same(snapshot(ours), snapshot(twin))


def test_local_tensors_that_overlap():
    memory = torch.zeros(4, 2)
    mesh = init_device_mesh("cpu", (8,))
    whole = {"run_check": False, "shape": (24, 2), "stride": (2, 1)}
    params = [
        Parameter(DTensor.from_local(part, mesh, [Shard(0)], **whole))
        for part in (memory[:3], memory[1:])
    ]
    for p in params:
        p.grad = torch.ones_like(p)
    ours = fused_optim.SGD(params, lr=0.1)
    with pytest.warns(UserWarning, match="overlap"):
        ours.step()


def test_memory_of_other_strides():
    """Transposed gradients, whose parts lie otherwise in memory."""
    mesh = init_device_mesh("cpu", (8,))
    param, plain = pair([Shard(0)], mesh=mesh)
    grad = torch.randn(2, 3).t()
    param.grad = DTensor.from_local(
        grad, mesh, [Shard(0)], run_check=False, shape=(24, 16), stride=(16, 1)
    )
    plain.grad = grad.clone()
    for options in ({}, {"zero_grads": True, "ema_decay": 0.5}):
        ours = fused_optim.Adam([param], lr=0.1, **options)
        twin = fused_optim.Adam([plain], lr=0.1, **options)
        ours.step()
        twin.step()
        assert ours.fallback_reason is None
        assert_same(snapshot(ours), snapshot(twin))
    assert not grad.any()


@pytest.mark.parametrize("which", ["_local_tensor", "grad"])
def test_a_part_that_does_not_fit(which):
    param, _ = pair([Shard(0), Shard(1)])
    ours = fused_optim.Adam([param], lr=0.1)
    before = param.to_local().clone()
    if which == "grad":
        param.grad._local_tensor = torch.zeros(2, 2)
    else:
        param._local_tensor = torch.zeros(2, 2)
        before = param.to_local().clone()
    with pytest.raises(RuntimeError, match=r"parameter 0: 'grad' has shape \[\d, 2\]"):
        ours.step()
    assert torch.equal(param.to_local(), before)


def test_specs_that_are_none():
    """No code of theirs runs, and torch says what is wrong."""

    class Spec:
        def __getattr__(self, name):
            raise SystemExit(name)

    for spec in (None, 3, Spec()):
        param, _ = pair([Shard(0), Shard(1)])
        ours = fused_optim.Adam([param], lr=0.1)
        ours.step()
        before = param.to_local().clone()
        ours.state[param]["exp_avg"]._spec = spec
        reason = fused_optim._C.why_not_fused(
            ours._rule, "Adam", ours.param_groups, ours.state, ours._fused.options
        )
        assert "no DTensorSpec" in reason[0]
        assert torch.equal(param.to_local(), before)


def test_many_equal_meshes():
    """One of each parameter's own: all are compared, and in time that grows with their number."""
    times = []
    for count in (20, 200):
        pairs = [pair([Shard(0)], mesh=init_device_mesh("cpu", (8,))) for _ in range(count)]
        for param, _ in pairs:
            param.grad = sharded([Shard(0)], mesh=init_device_mesh("cpu", (8,)))
        ours = fused_optim.SGD([param for param, _ in pairs], lr=0.1)
        ours.step()
        assert ours.fallback_reason is None
        times.append(min(timeit.repeat(ours.step, number=1, repeat=5)))
    assert times[1] < 40 * times[0]  # quadratic: 100


@pytest.mark.parametrize("value", [None, 3, "a tensor"])
def test_attributes_that_are_no_tensors(value):
    param, _ = pair([Shard(0), Shard(1)])
    ours = fused_optim.Adam([param], lr=0.1)
    ours.step()
    ours.state[param]["exp_avg"]._local_tensor = value
    with pytest.raises((RuntimeError, AttributeError, TypeError)), pytest.warns(UserWarning):
        ours.step()
