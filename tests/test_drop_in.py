"""What code around an optimizer relies on: hooks, closures, schedulers, threads, compilation."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from twins import (
    CASES,
    FUSED,
    TORCH,
    Twins,
    assert_same_state,
    assert_same_values,
    case_id,
    copies,
    make_params,
    randn,
    set_grads,
)

import fused_optim


@pytest.mark.parametrize("path", ["kernels", "torch"])
def test_step_hooks_fire_once_in_torchs_order(optimizer_class, path):
    params = make_params([(3,)])
    if path == "torch":  # not dense: the fallback
        params = [torch.randn(4, 4)[:, 1:3].detach().requires_grad_()]
    TORCH[optimizer_class]([Parameter(torch.zeros(1))])  # wraps torch's class's step
    optimizer = optimizer_class(params)
    params[0].grad = torch.ones_like(params[0])
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("local pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("local post")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "local pre", "local post", "global post"]
    assert (optimizer.fallback_reason is None) == (path == "kernels")


def test_pre_hook_may_replace_the_closure(optimizer_class):
    optimizer = optimizer_class(make_params([(3,)]))
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 42.0), kwargs))
    assert optimizer.step() == 42.0


def test_state_dict_hooks(optimizer_class):
    optimizer = optimizer_class(make_params([(3,)]))
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: calls.append("post"))
    optimizer.register_load_state_dict_pre_hook(lambda o, d: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "load pre", "load post"]


@pytest.mark.parametrize("path", ["kernels", "torch"])
def test_closure_runs_once_with_grad_and_its_loss_is_returned(optimizer_class, path):
    param = Parameter(torch.ones(4))
    if path == "torch":
        param = torch.ones(4, 4)[:, 1:3].detach().requires_grad_()
    optimizer, calls = optimizer_class([param]), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == param.numel()
    assert (param < 1).all()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(optimizer_class, set_to_none):
    params = make_params([(3,), (2, 2)])
    set_grads(params, seed=0)
    optimizer_class(params).zero_grad(set_to_none=set_to_none)
    assert all((p.grad is None) == set_to_none for p in params)
    assert all(p.grad is None or not p.grad.any() for p in params)


def test_stepping_from_a_post_accumulate_grad_hook(optimizer_class):
    """One optimizer a parameter, stepped inside backward."""
    model, other = torch.nn.Linear(4, 3).double(), torch.nn.Linear(4, 3).double()
    other.load_state_dict(model.state_dict())
    optimizers = {p: optimizer_class([p]) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    theirs = TORCH[optimizer_class](other.parameters(), foreach=False)
    for seed in range(3):
        x = randn((5, 4), torch.float64, torch.Generator().manual_seed(seed))
        model(x).pow(2).sum().backward()
        theirs.zero_grad()
        other(x).pow(2).sum().backward()
        theirs.step()
    assert all(o.fallback_reason is None for o in optimizers.values())
    assert_same_values(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_data_replaced_between_steps(case):
    """`p.data = ...`, as FSDP and quantisation do: other memory, other strides."""
    twins = Twins(*case, shapes=[(4, 6)], dtype=torch.float64)
    twins.step(2)
    for params in twins.lists:
        params[0].data = (params[0].data * 0.5).t().contiguous().t()
    twins.step(2)
    twins.assert_fused()
    assert_same_values(twins.params, twins.torch_params)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_parameter_densified_as_in_gaussian_splatting(case):
    """A new, longer Parameter in the group, its old state moved over and extended."""
    twins = Twins(*case, shapes=[(4, 3)], dtype=torch.float64)
    twins.step(2)
    for params, optimizer in (
        (twins.params, twins.ours),
        (twins.torch_params, twins.theirs),
    ):
        state = optimizer.state.pop(params[0], {})
        extension = torch.ones(2, 3, dtype=torch.float64)
        new = Parameter(torch.cat([params[0].detach(), extension]))
        for key, value in state.items():
            if value.dim() > 0:
                state[key] = torch.cat([value, torch.zeros_like(extension)])
        if state:
            optimizer.state[new] = state
        optimizer.param_groups[0]["params"][0] = new
        params[0] = new
    twins.step(3)
    twins.assert_fused()
    twins.assert_close()


@pytest.mark.skipif(
    not hasattr(torch.optim, "swap_in_optimizer_params_and_state"), reason="torch 2.13 and later"
)
def test_swapped_in_parameters_and_state_are_seen(optimizer_class):
    options = next(o for c, o in reversed(CASES) if c is optimizer_class)
    twins = Twins(optimizer_class, options, shapes=[(4,), (2, 2)], dtype=torch.float64)
    twins.step(1)
    swapped = []
    for optimizer, params in ((twins.ours, twins.params), (twins.theirs, twins.torch_params)):
        shadow = copies([p * 2 for p in params])
        state = copy.deepcopy(optimizer.state_dict())
        set_grads(shadow, seed=7)
        with torch.optim.swap_in_optimizer_params_and_state(
            optimizer, {str(i): p for i, p in enumerate(shadow)}, state
        ):
            optimizer.step()
        swapped.append((shadow, state["state"]))
    twins.assert_fused()
    assert_same_values(swapped[0][0], swapped[1][0])
    assert not torch.equal(swapped[0][0][0], 2 * twins.params[0])
    for index, values in swapped[1][1].items():
        for key, value in values.items():
            torch.testing.assert_close(swapped[0][1][index][key], value, rtol=1e-12, atol=1e-12)
    twins.step(2)
    twins.assert_close()


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_two_optimizers_stepped_from_two_threads(optimizer_class, size):
    def make():
        params = [Parameter(torch.linspace(-1, 1, size))]
        params[0].grad = torch.linspace(1, -1, size)
        return params, optimizer_class(params)

    alone, reference = make()
    for _ in range(5):
        reference.step()
    pairs = [make() for _ in range(2)]
    failures = []

    def run(optimizer):
        try:
            for _ in range(5):
                optimizer.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(optimizer,)) for _, optimizer in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for params, _ in pairs:
        assert torch.equal(params[0].detach(), alone[0].detach())


def test_tensors_dropped_by_another_thread_during_a_step():
    """Large steps run without the GIL: what they write to must outlive its owners."""
    for _ in range(5):
        param = Parameter(torch.zeros(6_000_000))
        param.grad = torch.ones_like(param)
        optimizer = fused_optim.Adam([param])
        optimizer.step()
        stop = threading.Event()

        def drop(optimizer=optimizer, param=param, stop=stop):
            while not stop.is_set():
                for key in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[param][key] = torch.zeros_like(param)
                param.grad = torch.ones_like(param)

        thread = threading.Thread(target=drop)
        thread.start()
        for _ in range(5):
            optimizer.step()
        stop.set()
        thread.join()
    assert param.isfinite().all()


def test_scheduler_assigns_step_and_nothing_keeps_the_optimizer_alive(optimizer_class):
    optimizer = optimizer_class(make_params([(3,)]))
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    assert "step" in vars(optimizer)
    reference = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer, scheduler
        assert reference() is None
    finally:
        gc.enable()


def test_step_can_be_assigned(optimizer_class):
    optimizer = optimizer_class(make_params([(3,)]))
    optimizer.step = lambda closure=None: "mine"
    assert optimizer.step() == "mine"


def test_user_subclass(optimizer_class):
    class Counting(optimizer_class):
        count = 0

        def step(self, closure=None):
            self.count += 1
            return super().step(closure)

    params, other = (make_params([(5,)], torch.float64) for _ in range(2))
    ours, theirs = Counting(params), optimizer_class(other)
    for seed in range(3):
        set_grads(params, other, seed=seed)
        ours.step()
        theirs.step()
    assert ours.count == 3
    assert_same_values(params, other, rtol=0, atol=0)


def test_optimizer_built_before_the_model_changes_dtype(optimizer_class):
    for dtype in (torch.float64, torch.bfloat16):
        model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        other.load_state_dict(model.state_dict())
        ours = optimizer_class(model.parameters())
        theirs = TORCH[optimizer_class](other.parameters(), foreach=False)

        def train(m, optimizer, dtype=dtype):
            m.to(dtype)
            for _ in range(3):
                optimizer.zero_grad()
                m(torch.ones(2, 3, dtype=dtype)).sum().backward()
                optimizer.step()

        train(model, ours)
        train(other, theirs)
        assert ours.fallback_reason is None
        tolerance = 1e-12 if dtype == torch.float64 else 0.02
        if optimizer_class.__name__ == "Adagrad" and dtype == torch.float64:
            tolerance = 1e-6  # its state has the old dtype since construction
        assert_same_values(list(model.parameters()), list(other.parameters()), tolerance, tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", FUSED)
def test_compiled_training_step(cls):
    """torch.compile traces torch's own step; state and parameters stay interchangeable."""
    torch._dynamo.reset()
    params, other = (make_params([(4,), (3, 2)]) for _ in range(2))
    ours, theirs = cls(params, lr=0.1), TORCH[cls](other, lr=0.1, foreach=False)

    def train(p, optimizer):
        optimizer.zero_grad()
        loss = sum((q**2).sum() for q in p)
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(lambda: train(params, ours), backend="aot_eager")
    step_only = torch.compile(ours.step, backend="aot_eager")
    for _ in range(3):
        compiled()
        train(other, theirs)
    set_grads(params, other, seed=0)
    step_only()
    theirs.step()
    train(params, ours)  # and eager again
    train(other, theirs)
    assert ours.fallback_reason is None
    # Traced, torch computes bias corrections in float32: its own compiled Adam is as far (4e-6).
    assert_same_values(params, other, rtol=1e-4, atol=1e-5)
    assert_same_state(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_public_name_of_torch_optim():
    import importlib
    import pkgutil

    for name in torch.optim.__all__:
        assert hasattr(fused_optim, name), name
        assert name in fused_optim.__all__
    for info in pkgutil.iter_modules(torch.optim.__path__):
        if info.name.startswith("_"):
            continue
        theirs = importlib.import_module(f"torch.optim.{info.name}")
        ours = importlib.import_module(f"fused_optim.{info.name}")
        for name in getattr(theirs, "__all__", []):
            assert hasattr(ours, name), f"{info.name}.{name}"
    assert fused_optim.LBFGS is torch.optim.LBFGS
    assert fused_optim.lr_scheduler is torch.optim.lr_scheduler
    from fused_optim.lr_scheduler import CosineAnnealingLR

    assert CosineAnnealingLR is lr_scheduler.CosineAnnealingLR
