"""DTensor parameters step on the kernels, to the bits of the same shards as plain tensors."""

import copy
import functools
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from ranks import ranks_of
from sharded import SHAPES, assert_same, line, local, make, placed, set_grads, snapshot, whole
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter
from twins import FUSED, TORCH, all_options

import fused_optim
from fused_optim import grid_of_ranks

pytestmark = pytest.mark.process
OPTIONS = {"max_grad_norm": 0.5, "skip_nonfinite": True, "zero_grads": True, "ema_decay": 0.9}


two = ranks_of(2)


def named(name):
    return getattr(fused_optim, name)


def on_kernels(optimizer):
    assert optimizer.fallback_reason is None, optimizer.fallback_reason


def steps_like_plain_shards(dtype, extra):
    warnings.simplefilter("error")
    # bfloat16 second moments without stochastic rounding, whose bits count each shard's elements.
    warnings.filterwarnings("ignore", "fused_optim.*stands still")
    mesh = line()
    for cls in FUSED:
        params, plain = make(mesh, dtype=dtype)
        ours = cls(params, **all_options(cls), **extra)
        twin = cls(plain, **all_options(cls), **extra)
        for i in range(3):
            set_grads(params, plain, seed=i)
            if i == 1:
                params[2].grad = plain[2].grad = None
            ours.step()
            twin.step()
        on_kernels(ours)
        assert_same(snapshot(ours), snapshot(twin))
        for p in params:
            for name, state in ours.state[p].items():
                is_scalar = name == "step" or name in fused_optim._C.scalar_states(cls._rule)
                assert isinstance(state, DTensor) != is_scalar, name
                if not is_scalar:
                    assert state.shape == p.shape and state.placements == p.placements
                    assert state.dtype == state.to_local().dtype
                    assert state._spec.tensor_meta.dtype == state.dtype


@pytest.mark.parametrize(
    ("dtype", "extra"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float32, {"ema_decay": 0.9, "zero_grads": True}),
        (torch.bfloat16, {"state_dtype": torch.float32, "ema_decay": 0.5}),
        (torch.float32, {"state_dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_the_bits_of_plain_shards(two, dtype, extra):
    two.run(steps_like_plain_shards, dtype, extra)


def steps_like_torch():
    mesh = line()
    for cls in FUSED:
        if cls in (fused_optim.Lion, fused_optim.Rprop):
            continue  # torch has none, and raises
        params, _ = make(mesh)
        others, _ = make(mesh)
        ours, theirs = cls(params, **all_options(cls)), TORCH[cls](others, **all_options(cls))
        for i in range(4):
            set_grads(params, seed=i)
            set_grads(others, seed=i)
            ours.step()
            theirs.step()
        on_kernels(ours)
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.to_local(), q.to_local())
            assert {*ours.state[p]} == {*theirs.state[q]}
            for name, value in theirs.state[q].items():
                own = ours.state[p][name]
                assert type(own) is type(value), name
                torch.testing.assert_close(local(own), local(value))


def test_torchs_numbers(two):
    two.run(steps_like_torch)


def train(model, optimizer, steps=3):
    losses = []
    for i in range(steps):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(i))
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sharded_model(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    fully_shard(model[0], mesh=line(), **options)
    fully_shard(model, mesh=line(), **options)
    return model


def fsdp2():
    for options in ({}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
        model, other = sharded_model(**options), sharded_model(**options)
        ours = fused_optim.AdamW(model.parameters(), lr=0.05)
        assert train(model, ours) == pytest.approx(
            train(other, torch.optim.AdamW(other.parameters(), lr=0.05))
        )
        on_kernels(ours)


def test_fully_shard(two):
    two.run(fsdp2)


def fused_in_place_and_replaced():
    mesh = line()
    params, plain = make(mesh)
    optimizer = torch.optim.AdamW(params, lr=torch.tensor(0.1), fused=True)
    set_grads(params)
    optimizer.step()
    ours = fused_optim.fuse(optimizer)
    twin = fused_optim.AdamW(plain, lr=torch.tensor(0.1))
    set_grads(params, plain)
    twin.step()
    set_grads(params, plain)
    ours.step()
    twin.step()
    on_kernels(ours)
    # As Accelerate does: other parameter objects in the groups.
    others, _ = make(mesh)
    ours.param_groups[0]["params"] = others
    set_grads(others)
    ours.step()
    on_kernels(ours)
    assert {*others} <= {*ours.state}


def test_fuse_and_swapped_parameters(two):
    two.run(fused_in_place_and_replaced)


def copies_step_on():
    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, ema_decay=0.5, state_dtype=torch.bfloat16)
    set_grads(params)
    ours.step()
    copied = copy.deepcopy(ours)
    set_grads(params, seed=3)
    set_grads(copied.param_groups[0]["params"], seed=3)
    ours.step()
    copied.step()
    on_kernels(copied)
    assert_same(snapshot(ours), snapshot(copied))
    # Meshes of a pickle are equal, and not the same objects.
    other = fused_optim.AdamW(make(line())[0], lr=0.1, ema_decay=0.5, state_dtype=torch.bfloat16)
    for p, q in zip(other.param_groups[0]["params"], params, strict=True):
        with torch.no_grad():
            p.copy_(q)
    other.load_state_dict(pickle.loads(pickle.dumps(ours.state_dict())))
    set_grads(other.param_groups[0]["params"], seed=4)
    set_grads(params, seed=4)
    ours.step()
    other.step()
    on_kernels(other)
    assert_same(snapshot(ours), snapshot(other))


def test_copies_and_pickles(two):
    two.run(copies_step_on)


def averages_and_hooks():
    params, plain = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, ema_decay=0.5)
    twin = fused_optim.AdamW(plain, lr=0.1, ema_decay=0.5)
    for i in range(3):
        set_grads(params, plain, seed=i)
        ours.step()
        twin.step()
    before = snapshot(ours)
    with ours.ema_parameters(), twin.ema_parameters():
        assert_same(snapshot(ours), snapshot(twin))
        assert (
            not torch.equal(params[0].to_local(), before[0][0]) or not params[0].to_local().numel()
        )
    assert_same(snapshot(ours), before)
    # One step a parameter, from its own hook.
    each = {p: fused_optim.AdamW([p], lr=0.1) for p in params}
    for p in params:
        p.register_post_accumulate_grad_hook(lambda p: each[p].step())
    sum(p.to_local().sum() for p in params).backward()
    for optimizer in each.values():
        on_kernels(optimizer)
    assert all(each[p].state[p]["step"] == 1 for p in params)


def test_averages_and_hooks(two):
    two.run(averages_and_hooks)


def bad_averages():
    mesh = line()
    params, _ = make(mesh, [(6, 2), (6, 2)])
    ours = fused_optim.SGD(params, lr=0.1, ema_decay=0.5)
    set_grads(params)
    ours.step()
    first, second = params
    good = ours.state[second]["ema"]
    bad = {
        "shares memory": ours.state[first]["ema"],
        "is placed as": placed(torch.zeros(6, 2), mesh, [Shard(1)]),
        "is no DTensor": torch.zeros(3, 2),
        r"has shape \[1, 2\]": copy.copy(good),
    }
    bad[r"has shape \[1, 2\]"] = DTensor.from_local(
        torch.zeros(1, 2), mesh, [Shard(0)], run_check=False, shape=(6, 2), stride=(2, 1)
    )
    before = [p.to_local().clone() for p in params]
    for match, average in bad.items():
        ours.state[second]["ema"] = average
        with pytest.raises(RuntimeError, match=f"group 0, parameter 1: 'ema' .*{match}"):
            ours.ema_parameters().__enter__()
        assert all(torch.equal(p.to_local(), b) for p, b in zip(params, before, strict=True))
    ours.state[second]["ema"] = good
    version = second._version
    with ours.ema_parameters():
        assert second._version > version
    assert all(torch.equal(p.to_local(), b) for p, b in zip(params, before, strict=True))


def test_bad_averages(two):
    two.run(bad_averages)


def skipped_zeroing():
    params, _ = make(line(), [(6, 2)])
    ours = fused_optim.SGD(params, lr=0.1, skip_nonfinite=True, zero_grads=True)
    set_grads(params)
    params[0].grad.to_local()[0] = float("nan")
    version = params[0].grad._version
    ours.step()
    assert not params[0].grad.to_local().any()
    assert params[0].grad._version > version


def test_a_skipped_step_zeroes_as_a_done_one(two):
    two.run(skipped_zeroing)


def replaced_while_ranks_exchange():
    params, _ = make(line(), [(6, 2)])
    ours = fused_optim.SGD(params, lr=0.1, max_grad_norm=1.0)
    set_grads(params)
    kept = params[0]._local_tensor
    before = kept.clone()
    all_gather = grid_of_ranks.all_gathered

    def replacing(*arguments):
        params[0]._local_tensor = torch.zeros_like(kept)
        return all_gather(*arguments)

    grid_of_ranks.all_gathered = replacing
    try:
        with pytest.raises(RuntimeError, match="another local tensor"):
            ours.step()
    finally:
        grid_of_ranks.all_gathered = all_gather
    assert torch.equal(kept, before)


def test_a_part_that_is_replaced_meanwhile(two):
    two.run(replaced_while_ranks_exchange)


def other_memory_while_ranks_exchange():
    """Nothing holds what a tensor had, and nothing is written there or to what it has now."""
    params, _ = make(line(), [(6, 2)])
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=1.0)
    set_grads(params)
    ours.step()
    state = ours.state[params[0]]["exp_avg"]
    all_gather = grid_of_ranks.all_gathered
    for owner in (params[0], params[0].grad, state):
        replaced = owner._local_tensor

        def replacing(*arguments, replaced=replaced):
            replaced.data = torch.zeros_like(replaced)
            return all_gather(*arguments)

        before = ours.state[params[0]]["step"].item()
        grid_of_ranks.all_gathered = replacing
        try:
            with pytest.raises(RuntimeError, match="got other memory"):
                ours.step()
        finally:
            grid_of_ranks.all_gathered = all_gather
        assert torch.equal(replaced.detach(), torch.zeros(3, 2))
        assert ours.state[params[0]]["step"].item() == before


def test_memory_that_is_replaced_meanwhile(two):
    two.run(other_memory_while_ranks_exchange)


def scaled_steps():
    for options in ({}, {"skip_nonfinite": True, "max_grad_norm": 1.0}, {"fused": True}):
        params, _ = make(line())
        ours = fused_optim.AdamW(params, lr=0.1, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        before = snapshot(ours)
        set_grads(params)
        if dist.get_rank() == 1:  # in one rank's shard alone
            params[0].grad.to_local()[0, 0] = float("inf")
        scaler.scale(torch.ones(()))
        scaler.step(ours)
        scaler.update()
        assert_same(snapshot(ours), before)
        assert scaler.get_scale() == 2.0
        set_grads(params, scale=2.0)
        scaler.scale(torch.ones(()))
        scaler.step(ours)
        on_kernels(ours)
        twins, _ = make(line())
        set_grads(twins, scale=1.0)
        theirs = fused_optim.AdamW(twins, lr=0.1, max_grad_norm=options.get("max_grad_norm"))
        theirs.step()
        for p, q in zip(params, twins, strict=True):
            torch.testing.assert_close(p.to_local(), q.to_local())


def test_grad_scaler(two):
    two.run(scaled_steps)


def accumulates():
    params, plain = make(line())
    ours, twin = fused_optim.SGD(params, lr=0.1), fused_optim.SGD(plain, lr=0.1)
    for i in range(2):
        set_grads(params, plain, seed=i)
        for p, q in zip(params, plain, strict=True):
            p.grad += p.grad
            q.grad += q.grad
    versions = [(p._version, p.to_local()._version) for p in params]
    ours.step()
    twin.step()
    assert_same(snapshot(ours), snapshot(twin))
    for p, (outer, inner) in zip(params, versions, strict=True):
        assert p._version > outer and p._local_tensor._version > inner


def test_accumulation_and_versions(two):
    two.run(accumulates)


def otherwise_placed_gradients():
    """Partial and replicated ones: torch redistributes them."""
    mesh = line()
    for placements in ([Partial()], [Replicate()]):
        for extra in ({}, {"max_grad_norm": 0.5}):
            params, _ = make(mesh, [(8, 4)])
            others, _ = make(mesh, [(8, 4)])
            for p in (*params, *others):
                p.grad = DTensor.from_local(torch.full((8, 4), 2.0), mesh, placements)
            ours = fused_optim.AdamW(params, lr=0.1, **extra)
            theirs = torch.optim.AdamW(others, lr=0.1)
            with pytest.warns(UserWarning, match="placed otherwise"):
                ours.step()
            if extra:
                total = torch.nn.utils.clip_grad_norm_(others, 0.5)
                torch.testing.assert_close(ours.grad_norm.float(), total.full_tensor())
            theirs.step()
            torch.testing.assert_close(params[0].to_local(), others[0].to_local())


def test_gradients_that_are_placed_otherwise(two):
    two.run(otherwise_placed_gradients)


def honours_flags():
    """Where torch's step is taken, it is the implementation that was asked for."""
    mesh = line()
    seen = []
    module = sys.modules["torch.optim.adam"]
    adam = module.adam

    def looked_at(*args, **kwargs):
        seen.append((bool(kwargs["fused"]), bool(kwargs["foreach"])))
        return adam(*args, **kwargs)

    module.adam = looked_at
    try:
        for flags in ({"fused": True}, {"foreach": True}):
            params, _ = make(mesh, [(8, 4), (6,)])
            ours = fused_optim.AdamW(params, lr=0.1, **flags)
            ours._init_group = functools.partial(type(ours)._init_group, ours)  # not for kernels
            set_grads(params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours.step()
            assert ours.fallback_reason is not None
            assert seen[-1] == (flags.get("fused", False), flags.get("foreach", False)), seen
    finally:
        module.adam = adam


def test_flags_on_torchs_path(two):
    two.run(honours_flags)


class Subclass(DTensor):
    pass


def bad_input():
    """Each is an error that names its place, on the kernels' path and on torch's."""
    mesh = line()

    def broken(break_it, match, exchange, error=RuntimeError):
        for extra in ({}, {"foreach": True}) if exchange else ({},):
            params, _ = make(mesh, [(8, 4), (6, 2)])
            ours = fused_optim.AdamW(params, lr=0.1, **extra)
            set_grads(params)
            ours.step()
            break_it(ours, params[1])
            before = [p.to_local().clone() for p in params]
            with pytest.raises(error, match=match):
                ours.step()
            for p, value in zip(params, before, strict=True):
                assert torch.equal(p.to_local(), value)

    def set_state(make_value):
        def break_it(ours, p):
            ours.state[p]["exp_avg"] = make_value(p)

        return break_it

    place = r"group 0, parameter 1: 'exp_avg' "
    broken(set_state(lambda p: torch.zeros(p.to_local().shape)), place + "is no DTensor", True)
    broken(set_state(lambda p: torch.zeros(p.shape)), place + "is no DTensor", True)
    replicated = set_state(lambda p: placed(torch.zeros(p.shape), mesh, [Replicate()]))
    broken(replicated, place + r"is placed as \(Replicate\(\),\).*Shard\(dim=0\)", True)
    other_dim = set_state(lambda p: placed(torch.zeros(p.shape), mesh, [Shard(1)]))
    broken(other_dim, place + r"is placed as \(Shard\(dim=1\),\)", True)
    smaller = set_state(lambda p: placed(torch.zeros(4, 2), mesh, [Shard(0)]))
    broken(smaller, place + r"has shape \[4, 2\]", True)

    def wrong_local(ours, p):
        ours.state[p]["exp_avg"]._local_tensor = torch.zeros(1, 2)

    broken(wrong_local, place + r"has shape \[1, 2\]", True)

    def wrong_dtype(ours, p):
        ours.state[p]["exp_avg"]._local_tensor = torch.zeros(3, 2, dtype=torch.int64)

    broken(wrong_dtype, place + "has dtype", False)

    def plain_grad(ours, p):
        grad = torch.zeros(p.shape)
        fused_optim._C.set_grads([p], [grad])

    broken(plain_grad, r"group 0, parameter 1: 'grad' is no DTensor", True)


def test_bad_input(two):
    two.run(bad_input)


def sharded_state_of_a_plain_parameter():
    mesh = line()
    plain = Parameter(torch.zeros(6, 2))
    for extra in ({}, {"foreach": True}):
        ours = fused_optim.AdamW([plain], lr=0.1, **extra)
        plain.grad = torch.ones(6, 2)
        ours.step()
        ours.state[plain]["exp_avg"] = placed(torch.zeros(6, 2), mesh, [Shard(0)])
        before = plain.detach().clone()
        with pytest.raises(RuntimeError, match="'exp_avg' is a DTensor, the parameter is none"):
            ours.step()
        assert torch.equal(plain.detach(), before)


def test_sharded_state_of_a_plain_parameter(two):
    two.run(sharded_state_of_a_plain_parameter)


def what_is_not_for_the_kernels():
    params, _ = make(line(), [(8, 4)])
    spec = params[0]._spec
    sub = Subclass(params[0].to_local().clone(), spec, requires_grad=True)
    assert type(sub) is Subclass
    ours = fused_optim.SGD([sub], lr=0.1)
    sub.grad = torch.ones_like(sub)
    with pytest.warns(UserWarning, match="of another type than Tensor, Parameter and DTensor"):
        ours.step()
    own = params[0]
    own.grad = torch.ones_like(own)
    own._local_tensor = own.to_local().as_subclass(type("Own", (torch.Tensor,), {}))
    ours = fused_optim.SGD(params, lr=0.1)
    with pytest.warns(UserWarning, match="local tensor is of a tensor subclass"):
        ours.step()


def test_subclasses(two):
    two.run(what_is_not_for_the_kernels)


def specs_stay_flat():
    import gc

    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    params, _ = make(line())
    ours = fused_optim.AdamW(params, lr=0.1, max_grad_norm=1.0, ema_decay=0.5)

    def live():
        gc.collect()
        return sum(type(o) is DTensorSpec for o in gc.get_objects())

    for i in range(300):
        for p in params:
            grad = torch.full_like(p.to_local(), i % 7 + 1.0)
            p.grad = DTensor.from_local(grad, p.device_mesh, p.placements, shape=p.shape,
                                        stride=p.stride())  # fmt: skip
        ours.step()
        if i == 20:
            before = live()
    assert live() <= before


def test_live_specs_stay_flat(two):
    two.run(specs_stay_flat)


def test_importing_imports_no_dtensor():
    code = "import sys, fused_optim; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shapes_have_empty_shards():
    assert any(shape and shape[0] < 2 for shape in SHAPES)
    assert len(whole()) == len(SHAPES)
