"""Steps that torch's own implementation takes are named: once in a warning, always in
``fallback_reason``, and as an error where the environment asks for it."""

import warnings

import pytest
import torch
from torch.nn import Parameter
from twins import TORCH, assert_same_values, assert_unchanged, copies, set_grads, snapshot

import fused_optim


class Marked(torch.Tensor):
    pass


def a_subclass():
    return [torch.ones(3).as_subclass(Marked).requires_grad_()]


def not_dense():
    return [Parameter(torch.ones(4, 6)[:, 1:4])]


def overlapping():
    memory = torch.ones(8)
    return [Parameter(memory[:5]), Parameter(memory[3:])]


UNEXPECTED = {
    "another type": a_subclass,
    "not dense": not_dense,
    "overlap": overlapping,
}


def stepped(optimizer, params):
    set_grads(params, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    return [w for w in caught if "fused_optim" in str(w.message)]


@pytest.mark.parametrize("reason", UNEXPECTED)
def test_said_once_for_each_optimizer(optimizer_class, reason):
    params = UNEXPECTED[reason]()
    optimizer = optimizer_class(params)
    assert optimizer.fallback_reason is None
    (warning,) = stepped(optimizer, params)
    assert warning.category is UserWarning
    assert reason in str(warning.message) and optimizer_class.__name__ in str(warning.message)
    assert warning.filename == __file__  # where step() was called, whatever wraps it
    assert reason in optimizer.fallback_reason
    assert stepped(optimizer, params) == []
    assert len(stepped(optimizer_class(params), params)) == 1


def test_gone_once_the_kernels_step_again():
    params = not_dense()
    optimizer = fused_optim.SGD(params, lr=0.1)
    stepped(optimizer, params)
    params[0].data = params[0].data.contiguous()
    assert stepped(optimizer, params) == []
    assert optimizer.fallback_reason is None
    params[0].data = not_dense()[0].data
    assert stepped(optimizer, params) == []  # it was said
    assert "not dense" in optimizer.fallback_reason


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"fused": False}, {"differentiable": True}], ids=str
)
def test_not_said_where_it_was_asked_for(options):
    params = [Parameter(torch.ones(3))]
    if "differentiable" in options:
        params = [torch.ones(3, requires_grad=True).clone()]
        params[0].retain_grad()
    optimizer = fused_optim.Adam(params, **options)
    assert stepped(optimizer, params) == []
    assert "asked for" in optimizer.fallback_reason


def test_not_said_of_what_is_torchs_own_way():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = fused_optim.SGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert "sparse" in optimizer.fallback_reason
    meta = torch.nn.Linear(3, 2, device="meta")
    assert stepped(fused_optim.Adam(meta.parameters()), list(meta.parameters())) == []


@pytest.mark.parametrize("reason", UNEXPECTED)
def test_strict(optimizer_class, reason, monkeypatch):
    params = UNEXPECTED[reason]()
    optimizer = optimizer_class(params)
    set_grads(params, seed=0)
    before = snapshot(optimizer)
    monkeypatch.setenv("FUSED_OPTIM_STRICT", "1")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"FUSED_OPTIM_STRICT=1.*{reason}"):
            optimizer.step()
        assert_unchanged(optimizer, before)
    asked = fused_optim.SGD(params, lr=0.1, foreach=True)
    asked.step()
    monkeypatch.delenv("FUSED_OPTIM_STRICT")
    optimizer.step()


def test_parameters_on_the_meta_device(optimizer_class):
    """As torch steps them, which checkpointing counts on for a model without memory."""
    model = torch.nn.Linear(3, 2, device="meta")
    optimizer = optimizer_class(model.parameters())
    theirs = TORCH[optimizer_class](model.parameters(), foreach=False)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    expected = None
    try:
        theirs.step()
    except Exception as error:
        expected = error
    if expected is None:
        optimizer.step()
        assert "meta" in optimizer.fallback_reason
        for p in model.parameters():
            assert {k: v.shape for k, v in optimizer.state[p].items()} == {
                k: v.shape for k, v in theirs.state[p].items()
            }
    else:
        with pytest.raises(type(expected)):
            optimizer.step()
    model.to_empty(device=torch.get_default_device())
    model.reset_parameters()
    optimizer = optimizer_class(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.fallback_reason is None


def test_fused_on_the_meta_device_is_torchs_error():
    model = torch.nn.Linear(3, 2, device="meta")
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    messages = []
    for cls in (torch.optim.AdamW, fused_optim.AdamW):
        with pytest.raises(RuntimeError, match="`fused=True` requires all the params") as error:
            cls(model.parameters(), fused=True).step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_warning_raised_as_an_error_changes_nothing():
    params = not_dense()
    optimizer = fused_optim.Adam(params)
    set_grads(params, seed=0)
    before = snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="not dense"):
                optimizer.step()
    assert_unchanged(optimizer, before)
    assert len(stepped(optimizer, params)) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_says_so():
    torch._dynamo.reset()
    params = [Parameter(torch.ones(3))]
    optimizer = fused_optim.Adam(params, ema_decay=0.5)
    compiled = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    set_grads(params, seed=0)
    compiled()
    assert optimizer.fallback_reason is None  # options are not traced
    optimizer.ema_decay = None
    with optimizer.ema_parameters(), pytest.raises(RuntimeError, match="inside ema_parameters"):
        compiled()
    plain = fused_optim.Adam(params)
    torch.compile(lambda: plain.step(), backend="aot_eager")()
    assert "torch.compile" in plain.fallback_reason
    plain.step()
    assert plain.fallback_reason is None


@pytest.mark.parametrize("name, value", [("skip_nonfinite", True), ("max_grad_norm", 1.0)])
def test_options_on_the_meta_device(name, value):
    model = torch.nn.Linear(3, 2, device="meta")
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer = fused_optim.AdamW(model.parameters(), **{name: value})
    optimizer.step()
    assert optimizer.grad_norm is None and optimizer.skipped_steps.item() == 0


def test_checkpointing_of_a_model_on_the_meta_device():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    saved = get_optimizer_state_dict(model, fused_optim.AdamW(model.parameters()))
    assert set(saved["state"]["weight"]) == {"step", "exp_avg", "exp_avg_sq"}


def test_torch_has_its_result(optimizer_class):
    params = not_dense()
    other = copies(params)
    optimizer = optimizer_class(params)
    theirs = TORCH[optimizer_class](other, foreach=False)
    for seed in range(3):
        set_grads(params, other, seed=seed)
        optimizer.step()
        theirs.step()
    assert_same_values(params, other, rtol=0, atol=0)
