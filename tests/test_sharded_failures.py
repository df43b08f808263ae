"""An error on one rank is one on all that share its norm, wherever in a step it comes from, and no
rank waits in vain."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, ranks_of
from sharded import assert_same, line, make, placed, set_grads, snapshot
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_pre_hook

import fused_optim
from fused_optim.own_state import NOT_STEPPING

pytestmark = pytest.mark.process
#: Seconds, within which a rank that waits for another one is found out.
LIMIT = 20

two = ranks_of(2, LIMIT)
six = ranks_of(6, LIMIT)


def rank():
    return dist.get_rank()


class Failure(Exception):
    """What the one rank raises."""


def fail(*_):
    raise Failure


def sharded_optimizer(**options):
    params, _ = make(line())
    return stepped(fused_optim.AdamW(params, lr=0.1, max_grad_norm=0.5, ema_decay=0.5, **options))


def shards_of_a_group():
    """Plain tensors, of which each rank has its own."""
    return stepped(
        fused_optim.AdamW(
            [Parameter(torch.ones(3 + rank()))], lr=0.1, skip_nonfinite=True, ema_decay=0.5,
            norm_group=dist.group.WORLD,
        )
    )  # fmt: skip


def stepped(optimizer):
    set_grads(optimizer.param_groups[0]["params"])
    optimizer.step()
    return optimizer


def fails_on_one_rank(optimizer, error, step=None):
    """Rank 0 raises its own error, the other one says so, and nothing has changed."""
    before = snapshot(optimizer)
    expected = error if rank() == 0 else RuntimeError
    match = None if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(expected, match=match) as raised:
        (step or optimizer.step)()
    assert raised.type is expected
    assert_same(snapshot(optimizer), before)


def steps_again(optimizer):
    param = optimizer.param_groups[0]["params"][0]
    number = optimizer.state[param]["step"].item()
    optimizer.step()
    assert optimizer.fallback_reason is None or optimizer.defaults["foreach"]
    assert optimizer.state[param]["step"].item() == number + 1


def raises_before(make, error):
    def hook(*_):
        if rank() == 0:
            raise error

    optimizer = make()
    for register in (optimizer.register_step_pre_hook, register_optimizer_step_pre_hook):
        handle = register(hook)
        fails_on_one_rank(optimizer, error)
        handle.remove()
        steps_again(optimizer)


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("make", [sharded_optimizer, shards_of_a_group])
def test_a_hook_before_the_step(two, make, error):
    two.run(raises_before, make, error)


def raises_before_torchs_step():
    raises_before(lambda: sharded_optimizer(foreach=True), Failure)


def test_a_hook_before_torchs_step(two):
    two.run(raises_before_torchs_step)


def closure_raises(error):
    def closure():
        if rank() == 0:
            raise error

    optimizer = sharded_optimizer()
    fails_on_one_rank(optimizer, error, lambda: optimizer.step(closure))
    steps_again(optimizer)


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, SystemExit])
def test_a_closure(two, error):
    two.run(closure_raises, error)


def closure_asks_for_the_norm_and_raises():
    params, _ = make(line())
    optimizer = stepped(fused_optim.AdamW(params, lr=0.1))

    def closure():
        optimizer.max_grad_norm = 0.5
        if rank() == 0:
            raise Failure

    fails_on_one_rank(optimizer, Failure, lambda: optimizer.step(closure))
    steps_again(optimizer)


def test_a_closure_that_asks_for_the_norm(two):
    two.run(closure_asks_for_the_norm_and_raises)


def steps_inside_ema_parameters(make):
    optimizer = make()
    if rank() == 0:
        match = "the averages would be trained"
        with optimizer.ema_parameters(), pytest.raises(RuntimeError, match=match):
            optimizer.step()
    else:
        fails_on_one_rank(optimizer, RuntimeError)
    steps_again(optimizer)


@pytest.mark.parametrize("make", [sharded_optimizer, shards_of_a_group])
def test_a_step_inside_ema_parameters(two, make):
    two.run(steps_inside_ema_parameters, make)


def partial_parameter_on_one_rank():
    optimizer = sharded_optimizer()
    param = optimizer.param_groups[0]["params"][0]
    spec = param._spec
    if rank() == 0:
        part = DTensor.from_local(torch.ones(7, 3), spec.mesh, [Partial()], run_check=False)
        param._spec = part._spec
    before = [p.detach().to_local().clone() for p in optimizer.param_groups[0]["params"][1:]]
    match = "placed as.*Partial" if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    param._spec = spec
    for p, value in zip(optimizer.param_groups[0]["params"][1:], before, strict=True):
        assert torch.equal(p.detach().to_local(), value)
    steps_again(optimizer)


def test_a_norm_that_cannot_be_set_up(two):
    two.run(partial_parameter_on_one_rank)


def partial_parameter_to_clip_on_one_rank():
    params, _ = make(line())
    set_grads(params)
    spec = params[0]._spec
    part = DTensor.from_local(torch.ones(7, 3), spec.mesh, [Partial()], run_check=False)
    if rank() == 0:
        params[0]._spec = part._spec
    before = [p.grad.to_local().clone() for p in params]
    match = "placed as.*Partial" if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(RuntimeError, match=match):
        fused_optim.clip_grad_norm_(params, 0.5)
    params[0]._spec = spec
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p.grad.to_local(), value)
    fused_optim.clip_grad_norm_(params, 0.5)


def test_clipping_by_a_norm_that_cannot_be_set_up(two):
    two.run(partial_parameter_to_clip_on_one_rank)


def group_that_lacks_ranks_on_one_rank():
    optimizer = sharded_optimizer()
    alone = [dist.new_group([0]), dist.new_group([1])][rank()]
    optimizer.norm_group = alone if rank() == 0 else dist.group.WORLD
    match = "norm_group lacks ranks" if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    optimizer.norm_group = dist.group.WORLD
    steps_again(optimizer)


def test_a_group_that_lacks_ranks(two):
    two.run(group_that_lacks_ranks_on_one_rank)


def bad_value_on_one_rank(name, value, options):
    optimizer = sharded_optimizer(**options)
    (group,) = optimizer.param_groups
    good = group[name]
    if rank() == 0:
        group[name] = value
    before = snapshot(optimizer)
    match = None if rank() == 0 else "met with an error on rank 0"
    with pytest.raises((RuntimeError, TypeError, ValueError), match=match):
        optimizer.step()
    group[name] = good
    assert_same(snapshot(optimizer), before)
    steps_again(optimizer)


@pytest.mark.filterwarnings("ignore:.*torch.optim's own")
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "none"), ("lr", None), ("lr", [0.1]), ("eps", "none"), ("betas", (0.9,)),
        ("betas", 0.9), ("betas", ("a", "b")), ("weight_decay", None),
    ],
)  # fmt: skip
def test_a_bad_value_in_a_group(two, name, value, options):
    two.run(bad_value_on_one_rank, name, value, options)


class Subclass(fused_optim.AdamW):
    raises = False

    def step(self, closure=None):
        if self.raises:
            raise Failure
        return super().step(closure)


def subclass_raises():
    params, _ = make(line())
    optimizer = stepped(Subclass(params, lr=0.1, max_grad_norm=0.5))
    optimizer.raises = rank() == 0
    fails_on_one_rank(optimizer, Failure)
    optimizer.raises = False
    steps_again(optimizer)


def test_a_subclass_before_its_step(two):
    two.run(subclass_raises)


def hook_steps_and_raises():
    """The hook's own step is whole, and that around it fails on both."""
    optimizer = sharded_optimizer()
    is_inside = False

    def hook(*_):
        nonlocal is_inside
        if is_inside:
            return
        is_inside = True
        optimizer.step()
        if rank() == 0:
            raise Failure

    handle = optimizer.register_step_pre_hook(hook)
    with pytest.raises(Failure if rank() == 0 else RuntimeError, match=None):
        optimizer.step()
    handle.remove()
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 2
    steps_again(optimizer)


def test_a_hook_that_steps(two):
    two.run(hook_steps_and_raises)


def steps_as_the_class_above_and_raises(where):
    """A hook or closure that does the step of the class above, a whole one, and then raises."""
    params, _ = make(line())
    optimizer = stepped(Subclass(params, lr=0.1, max_grad_norm=0.5))

    def call(*_):
        fused_optim.AdamW.step(optimizer)
        if rank() == 0:
            raise Failure

    handle = optimizer.register_step_pre_hook(call) if where == "hook" else None
    with pytest.raises(Failure if rank() == 0 else RuntimeError) as raised:
        optimizer.step(call if where == "closure" else None)
    assert rank() == 0 or "met with an error on rank 0" in str(raised.value)
    if handle is not None:
        handle.remove()
    assert optimizer.state[params[0]]["step"] == 2
    assert optimizer._fused.stage == NOT_STEPPING
    steps_again(optimizer)


@pytest.mark.parametrize("where", ["hook", "closure"])
def test_a_step_of_the_class_above_in_a_step(two, where):
    two.run(steps_as_the_class_above_and_raises, where)


class SubclassOfSubclass(Subclass):
    def step(self, closure=None):
        return super().step(closure)


def fails_in_the_step_of_the_class_above():
    """Before it has asked for the norm: told twice, of it and of the step around the hook."""
    params, _ = make(line())
    optimizer = stepped(SubclassOfSubclass(params, lr=0.1, max_grad_norm=0.5))
    optimizer.raises = rank() == 0
    handle = optimizer.register_step_pre_hook(lambda *_: Subclass.step(optimizer))
    fails_on_one_rank(optimizer, Failure)
    handle.remove()
    optimizer.raises = False
    steps_again(optimizer)


def test_a_step_of_the_class_above_that_fails(two):
    two.run(fails_in_the_step_of_the_class_above)


def raises_after(asks_late, observed):
    """The step is done on both ranks: nobody waits, and nobody is told."""
    params, _ = make(line())
    options = {} if asks_late else {"max_grad_norm": 0.5}
    optimizer = stepped(fused_optim.AdamW(params, lr=0.1, **options))

    def hook(*_):
        optimizer.max_grad_norm = 0.5
        if rank() == 0:
            raise Failure

    handle = optimizer.register_step_post_hook(hook)
    before = optimizer.register_step_pre_hook(lambda *_: None) if observed else None
    if rank() == 0:
        with pytest.raises(Failure):
            optimizer.step()
    else:
        optimizer.step()
    handle.remove()
    if before is not None:
        before.remove()
    assert optimizer.state[params[0]]["step"] == 2
    steps_again(optimizer)


@pytest.mark.parametrize("asks_late", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_a_hook_after_the_step(two, asks_late, observed):
    two.run(raises_after, asks_late, observed)


def other_options_on_one_rank(make):
    for options in ({"max_grad_norm": 0.25}, {"skip_nonfinite": True, "max_grad_norm": None}):
        optimizer = make()
        optimizer.max_grad_norm, optimizer.skip_nonfinite = 0.5, False
        if rank() == 0:
            for name, value in options.items():
                setattr(optimizer, name, value)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="max_grad_norm"):
            optimizer.step()
        assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("make", [sharded_optimizer, shards_of_a_group])
def test_other_options_on_one_rank(two, make):
    two.run(other_options_on_one_rank, make)


def on_meshes(lines, where):
    """Each rank has parameters on those of the meshes that it is in, in their order."""
    meshes = [DeviceMesh("cpu", list(ranks)) for ranks in lines]
    params = [
        Parameter(placed(torch.ones(6, 2), mesh, [where]))
        for mesh, ranks in zip(meshes, lines, strict=True)
        if rank() in ranks
    ]
    if not params:
        return
    optimizer = fused_optim.SGD(params, lr=0.1, max_grad_norm=0.5)
    set_grads(params)
    before = [p.detach().to_local().clone() for p in params]
    with pytest.raises(RuntimeError, match="placed differently|form no grid|met with an error"):
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p.detach().to_local(), value)


@pytest.mark.parametrize("where", [Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize(
    "lines",
    [
        ((0, 1), (1, 2)),
        ((0, 1), (1, 2), (2, 3)),
        ((1, 2), (0, 1), (2, 3)),
        ((0, 1, 2), (2, 3, 4)),
        ((0, 1), (1, 2), (0, 2)),
        ((0, 1), (1, 2), (2, 3), (0, 3)),
        ((0, 1), (2, 3), (4, 5), (1, 2), (3, 4), (0, 5)),
        ((0, 1, 2), (3, 4, 5), (0, 3), (1, 4)),
    ],
    ids=str,
)
def test_meshes_that_form_no_grid(six, lines, where):
    six.run(on_meshes, lines, where)


def squares_of_two_meshes():
    """A grid whose dimensions are meshes of their own."""
    lines = ((0, 1, 2), (3, 4, 5), (0, 3), (1, 4), (2, 5))
    meshes = [DeviceMesh("cpu", list(ranks)) for ranks in lines]
    params = [
        Parameter(placed(torch.ones(6, 2), mesh, [Shard(0)]))
        for mesh, ranks in zip(meshes, lines, strict=True)
        if rank() in ranks
    ]
    optimizer = fused_optim.SGD(params, lr=0.1, max_grad_norm=0.5)
    for p in params:
        p.grad = placed(torch.ones(6, 2), p.device_mesh, [Shard(0)])
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(24**0.5)
    if rank() == 4:
        optimizer.register_step_pre_hook(fail)
    with pytest.raises(Failure if rank() == 4 else RuntimeError) as raised:
        optimizer.step()
    assert "on rank 4" in str(raised.value) or rank() == 4


def test_meshes_that_form_a_grid(six):
    six.run(squares_of_two_meshes)


def groups_of_one():
    return [dist.new_group([0]), dist.new_group([1])]


class Catching(fused_optim.AdamW):
    """Catches what its step raises, of which the wrapper around it sees nothing."""

    caught = None

    def step(self, closure=None):
        try:
            return super().step(closure)
        except RuntimeError as error:
            self.caught = error


def subclass_catches():
    params, _ = make(line())
    optimizer = stepped(Catching(params, lr=0.1, max_grad_norm=0.5))
    alone = groups_of_one()[rank()]
    optimizer.norm_group = alone if rank() == 0 else None
    optimizer.step()
    assert ("norm_group" if rank() == 0 else "error on rank 0") in str(optimizer.caught)
    optimizer.norm_group = None
    steps_again(optimizer)


def test_a_subclass_that_catches(two):
    two.run(subclass_catches)


class SteppingTwice(fused_optim.AdamW):
    before_second = None

    def step(self, closure=None):
        super().step(closure)
        if self.before_second is not None:
            self.before_second()
        return super().step(closure)


def second_step_fails():
    params, _ = make(line())
    optimizer = stepped(SteppingTwice(params, lr=0.1, max_grad_norm=0.5))
    groups = groups_of_one()

    def ask_for_too_few():
        optimizer.norm_group = groups[0] if rank() == 0 else None

    optimizer.before_second = ask_for_too_few
    match = "norm_group lacks ranks" if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    optimizer.norm_group = optimizer.before_second = None
    optimizer.step()


def test_the_second_step_of_a_subclass(two):
    two.run(second_step_fails)


class AskingAfterwards(fused_optim.AdamW):
    def step(self, closure=None):
        super().step(closure)
        self.max_grad_norm = 0.5
        if rank() == 0:
            raise Failure


def subclass_asks_afterwards_and_raises():
    params, _ = make(line())
    optimizer = AskingAfterwards(params, lr=0.1)
    set_grads(params)
    if rank() == 0:
        with pytest.raises(Failure):
            optimizer.step()
    else:
        optimizer.step()
    with pytest.raises(Failure) if rank() == 0 else contextlib.nullcontext():
        optimizer.step()  # of both
    assert optimizer.state[params[0]]["step"] == 2


def test_a_subclass_that_asks_for_the_norm_after_its_step(two):
    two.run(subclass_asks_afterwards_and_raises)


def unreadable_parameters_on_one_rank(value):
    optimizer = sharded_optimizer()
    (group,) = optimizer.param_groups
    good = group["params"]
    before = snapshot(optimizer)
    if rank() == 0:
        group["params"] = value
    match = None if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(Exception, match=match):
        optimizer.step()
    group["params"] = good
    assert_same(snapshot(optimizer), before)
    steps_again(optimizer)


@pytest.mark.parametrize("value", [None, [1], [torch.ones(2), None]], ids=str)
def test_parameters_that_cannot_be_read(two, value):
    two.run(unreadable_parameters_on_one_rank, value)


def closure_adds_a_parameter_on_one_rank():
    optimizer = sharded_optimizer()
    before = snapshot(optimizer)
    mesh = init_device_mesh("cpu", (2, 1))
    added = Parameter(placed(torch.ones(4, 4), mesh, [Shard(0), Shard(1)]))
    added.grad = placed(torch.ones(4, 4), mesh, [Shard(0), Shard(1)])

    def closure():
        if rank() == 0:
            optimizer.add_param_group({"params": [added]})

    with pytest.raises(RuntimeError, match="placed differently"):
        optimizer.step(closure)
    del optimizer.param_groups[1:]
    assert_same(snapshot(optimizer), before)
    steps_again(optimizer)


def test_a_closure_that_adds_a_parameter(two):
    two.run(closure_adds_a_parameter_on_one_rank)


def compiled_step_fails(where):
    optimizer = sharded_optimizer()
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    compiled()
    groups = groups_of_one()
    if rank() == 0 and where == "step":
        optimizer.norm_group = groups[0]
    handle = optimizer.register_step_pre_hook(fail) if rank() == 0 and where == "hook" else None
    match = None if rank() == 0 else "met with an error on rank 0"
    with pytest.raises(Exception, match=match):
        compiled()
    optimizer.norm_group = None
    if handle is not None:
        handle.remove()
    assert optimizer._fused.stage == NOT_STEPPING
    steps_again(optimizer)


@pytest.mark.parametrize("where", ["step", "hook"])
def test_a_compiled_step(two, where):
    two.run(compiled_step_fails, where)


def steps_in_another_order():
    """Of two optimizers, one by the mesh and one by the group, whose ranks are the same."""
    by_mesh, by_group = sharded_optimizer(), shards_of_a_group()
    optimizers = [by_mesh, by_group] if rank() == 0 else [by_group, by_mesh]
    for optimizer in optimizers:
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="another max_grad_norm"):
            optimizer.step()
        assert_same(snapshot(optimizer), before)
    steps_again(by_mesh)
    steps_again(by_group)


def test_steps_in_another_order(two):
    two.run(steps_in_another_order)


def no_parameters_on_one_rank():
    optimizer = sharded_optimizer(norm_group=dist.group.WORLD)
    (group,) = optimizer.param_groups
    good = group["params"]
    if rank() == 1:
        group["params"] = []
    with pytest.raises(RuntimeError, match="another max_grad_norm"):
        optimizer.step()
    group["params"] = good
    steps_again(optimizer)


def test_no_parameters_on_one_rank(two):
    two.run(no_parameters_on_one_rank)


def no_group_on_one_rank():
    optimizer = sharded_optimizer()
    optimizer.norm_group = None if rank() == 0 else dist.group.WORLD
    before = snapshot(optimizer)
    with pytest.raises(
        RuntimeError, match="or another max_grad_norm, skip_nonfinite or norm_group"
    ):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_no_group_on_one_rank(two):
    two.run(no_group_on_one_rank)


def world_made_anew(store):
    """Where the mesh finds its group by name, and the one of before is gone."""
    optimizer = sharded_optimizer()
    norm = optimizer.grad_norm
    number, world = rank(), dist.get_world_size()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    steps_again(optimizer)
    assert torch.equal(optimizer.grad_norm, norm)
    (group,) = optimizer._fused.norm_plan.grid.groups
    assert group is dist.group.WORLD


def test_a_world_made_anew(tmp_path):
    ranks = Ranks(2, LIMIT)
    ranks.run(world_made_anew, str(tmp_path / "store"))
    ranks.stop()
