"""DTensors in fewer bytes: the bits of whole tensors on one process, on any number of ranks."""

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import ranks_of
from sharded import line, local, make, set_grads
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter

import fused_optim

pytestmark = pytest.mark.process

#: Rows of a block, so that no shard cuts one; a tensor that is large on all ranks together alone;
#: one that is small; uneven and empty shards.
SHAPES = [(64, 128), (40, 128), (9, 7), (33,), (1, 5)]


two = ranks_of(2)


def whole_and_sharded(cls, options, dtype, placements=None):
    params, _ = make(line(), SHAPES, dtype, placements)
    whole = [Parameter(p.detach().full_tensor().clone()) for p in params]
    return params, whole, cls(params, **options), cls(whole, **options)


def step(optimizers, params, whole, seed):
    grads = set_grads(params, seed=seed)
    for p, grad in zip(whole, grads, strict=True):
        p.grad = grad.clone()
    for optimizer in optimizers:
        optimizer.step()
        assert optimizer.fallback_reason is None


def assert_wholes_bits(params, whole, ours, theirs):
    for p, q in zip(params, whole, strict=True):
        assert torch.equal(p.detach().full_tensor(), q.detach())
    saved, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    for number, p in enumerate(params):
        assert saved[number].keys() == expected[number].keys()
        for name, value in saved[number].items():
            if isinstance(value, DTensor):
                assert value.shape == p.shape and value.placements == p.placements
                value = value.full_tensor()
            assert torch.equal(value, expected[number][name]), name


def steps_like_the_whole(name, options, dtype, placements):
    cls = getattr(fused_optim, name)
    params, whole, ours, theirs = whole_and_sharded(cls, options, dtype, placements)
    for seed in range(3):
        step((ours, theirs), params, whole, seed)
    assert_wholes_bits(params, whole, ours, theirs)
    masters = zip(ours.master_parameters(), theirs.master_parameters(), strict=True)
    for one, other in masters:
        assert torch.equal(one.full_tensor(), other)


@pytest.mark.parametrize("placements", [None, (Replicate(),)], ids=["shards", "replicas"])
@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("AdamW", {"state_dtype": torch.int8, "ema_decay": 0.9}, torch.float32),
        ("Lion", {"state_dtype": torch.int8, "stochastic_rounding": True}, torch.bfloat16),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "master_bits": 32}, torch.bfloat16),
        (
            "AdamW",
            {"master_bits": 24, "stochastic_rounding": True, "state_dtype": torch.int8},
            torch.bfloat16,
        ),
    ],
    ids=str,
)
def test_the_bits_of_the_whole(two, name, options, dtype, placements):
    two.run(steps_like_the_whole, name, options, dtype, placements)


def steps_in_another_dimension():
    """Blocks are each rank's own, and the state dict is of the whole."""
    options = {"state_dtype": torch.int8, "master_bits": 24, "stochastic_rounding": True}
    params, _ = make(line(), [(64, 128)], torch.bfloat16, (Shard(1),))
    ours = fused_optim.AdamW(params, **options)
    for seed in range(2):
        set_grads(params, seed=seed)
        ours.step()
        assert ours.fallback_reason is None
    state = ours.state[params[0]]
    assert state["exp_avg"].to_local().dtype == torch.int8
    assert state["exp_avg_scales"].shape == (32,)
    assert ours.state_dict()["state"][0]["exp_avg"].full_tensor().shape == (64, 128)
    copied = copy.deepcopy(ours)
    copied.load_state_dict(copy.deepcopy(ours.state_dict()))
    others = copied.param_groups[0]["params"]
    set_grads(params, seed=5)
    set_grads(others, seed=5)
    ours.step()
    copied.step()
    assert torch.equal(local(params[0].detach()), local(others[0].detach()))


def test_sharded_in_another_dimension(two):
    two.run(steps_in_another_dimension)


class Model(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.params = torch.nn.ParameterList(params)


def goes_on_from_a_checkpoint(path):
    options = {"state_dtype": torch.int8, "master_bits": 24, "stochastic_rounding": True}
    params, whole, ours, theirs = whole_and_sharded(fused_optim.AdamW, options, torch.bfloat16)
    for seed in range(2):
        step((ours, theirs), params, whole, seed)
    model = Model(params)
    saved = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, ours)}
    dcp.save(saved, checkpoint_id=path)
    dist.barrier()
    fresh = Model(make(line(), SHAPES, torch.bfloat16)[0])
    again = fused_optim.AdamW([*fresh.parameters()], **options)
    states = get_optimizer_state_dict(fresh, again)
    loaded = {"model": fresh.state_dict(), "optim": states}
    dcp.load(loaded, checkpoint_id=path)
    set_optimizer_state_dict(fresh, again, loaded["optim"])
    resumed = [*fresh.parameters()]
    step((again, theirs), resumed, whole, 7)
    assert_wholes_bits(resumed, whole, again, theirs)


def test_a_distributed_checkpoint(two):
    with tempfile.TemporaryDirectory() as path:
        two.run(goes_on_from_a_checkpoint, path)


def model_of_fsdp1(use_orig_params, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(130, 101), torch.nn.Linear(101, 7)).bfloat16()
    if use_orig_params is not None:
        cpu = torch.device("cpu")
        model = FSDP(model, device_id=cpu, use_orig_params=use_orig_params)
    return model, fused_optim.AdamW(model.parameters(), lr=0.01, **options)


def train(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(6, 130, generator=generator).bfloat16()).square().sum().backward()
        optimizer.step()
        assert optimizer.fallback_reason is None


def fsdp1_with_masters(use_orig_params):
    """Masters of 32 bits are those of one process, and checkpoints of shards go on to the bit, with
    moments in 8 bits, too."""
    for options in ({"master_bits": 32}, {"master_bits": 24, "state_dtype": torch.int8}):
        model, optimizer = model_of_fsdp1(use_orig_params, options)
        train(model, optimizer, range(3))
        if options["master_bits"] == 32:
            whole, alone = model_of_fsdp1(None, options)
            train(whole, alone, range(3))
            with FSDP.summon_full_params(model):
                parts = [p.detach().flatten() for p in model.parameters()]
                values = torch.cat(parts)[: sum(p.numel() for p in whole.parameters())]
                assert torch.equal(values, torch.cat([p.flatten() for p in whole.parameters()]))
        new, resumed = model_of_fsdp1(use_orig_params, options)
        with (
            FSDP.state_dict_type(model, StateDictType.SHARDED_STATE_DICT),
            FSDP.state_dict_type(new, StateDictType.SHARDED_STATE_DICT),
        ):
            new.load_state_dict(model.state_dict())
            saved = FSDP.optim_state_dict(model, optimizer)
            resumed.load_state_dict(FSDP.optim_state_dict_to_load(new, resumed, saved))
        train(model, optimizer, [3, 4])
        train(new, resumed, [3, 4])
        for p, q in zip(model.parameters(), new.parameters(), strict=True):
            mine, theirs = optimizer.state.get(p, {}), resumed.state.get(q, {})
            assert torch.equal(p, q) and mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
            assert not p.numel() or "remainder" in mine


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_with_masters(two, use_orig_params):
    two.run(fsdp1_with_masters, use_orig_params)
