"""States of one element beside `step`, such as mu_product: what they become, and whose they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from twins import FUSED, SCALARS, Twins, set_grads

import fused_optim
import fused_optim._C as _C

WITH_SCALARS = [cls for cls in FUSED if SCALARS[cls] != {"step"}]


def stepped(optimizer, step):
    """The state after the step of this number."""
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[param]["step"].fill_(step - 1)
    optimizer.step()
    assert optimizer.fallback_reason is None
    return optimizer.state[param]


@given(
    lr=st.floats(1e-8, 1e3),
    lambd=st.floats(0, 1e8),
    alpha=st.floats(-3, 3),
    step=st.integers(1, 2**40),
)
def test_real_powers_are_those_of_libm(lr, lambd, alpha, step):
    """Both are within about (2 + |ln|) units in the last place of the exact power."""
    torch.set_default_dtype(torch.float64)
    state = stepped(fused_optim.ASGD([torch.zeros(1)], lr=lr, lambd=lambd, alpha=alpha), step)
    expected = lr / (1 + lambd * lr * step) ** alpha
    assert math.isclose(state["eta"].item(), expected, rel_tol=200 * 2**-52)


@given(step=st.integers(1, 2**40), momentum_decay=st.floats(0, 10))
def test_nadams_momentum(step, momentum_decay):
    torch.set_default_dtype(torch.float64)
    optimizer = fused_optim.NAdam([torch.zeros(1)], momentum_decay=momentum_decay)
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones(1)
    optimizer.step()
    optimizer.state[param]["mu_product"].fill_(1.0)
    state = stepped(optimizer, step)  # takes two steps: numbers 2 and `step`
    first, last = (0.9 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (2, step))
    assert math.isclose(state["mu_product"].item(), first * last, rel_tol=1e-13)


@pytest.mark.parametrize("cls", WITH_SCALARS)
def test_a_scalar_that_parameters_share_advances_for_each_in_turn(cls):
    """A launch computes from what there was before, torch from what it has just written."""
    twins = Twins(cls, {}, dtype=torch.float64)
    twins.step()
    for optimizer in (twins.ours, twins.theirs):
        states = list(optimizer.state.values())
        for name in SCALARS[cls] - {"step"}:
            states[0][name] = states[1][name]
    twins.step(2)
    assert "overlap" in twins.ours.fallback_reason
    twins.assert_close()


@pytest.mark.parametrize("cls", WITH_SCALARS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_scalars_keep_the_dtype_they_have(cls, dtype):
    """Rounded as torch's operations in that dtype round: to within one unit of it."""
    twins = Twins(cls, {}, shapes=[(5,)], dtype=torch.float64)
    twins.step()
    for optimizer in (twins.ours, twins.theirs):
        for state in optimizer.state.values():
            for name in SCALARS[cls] - {"step"}:
                state[name] = state[name].to(dtype)
    twins.step(3)
    twins.assert_fused()
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    twins.assert_close(rtol=2 * rounding, atol=2 * rounding)
    assert all(
        state[name].dtype == dtype
        for state in twins.ours.state.values()
        for name in SCALARS[cls] - {"step"}
    )


def test_the_names_of_a_rule_that_is_not_there():
    with pytest.raises(IndexError, match="no such rule"):
        _C.scalar_states(99)


def test_scalars_of_two_dtypes_take_torchs_step():
    twins = Twins(fused_optim.ASGD, {}, shapes=[(5,)], dtype=torch.float64)
    twins.step()
    for optimizer in (twins.ours, twins.theirs):
        for state in optimizer.state.values():
            state["mu"] = state["mu"].double()
    set_grads(*twins.lists, seed=1)
    twins.step()
    assert "of another dtype" in twins.ours.fallback_reason
    twins.assert_close()
