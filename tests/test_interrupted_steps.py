"""A step that is interrupted, or has no memory, is done as a whole or not at all."""

import random

import pytest
import torch
from hostile import Number, interrupted
from twins import all_options, assert_unchanged, make_params, set_grads, snapshot

import fused_optim
import fused_optim._C as _C


def test_ctrl_c_in_a_first_step(optimizer_class):
    """All of the state and the whole step, or nothing of it."""
    for seed in range(15):
        params = make_params([(2,)] * 1500)
        set_grads(params, seed=0)
        optimizer = optimizer_class(params, **all_options(optimizer_class))
        before = snapshot(optimizer)
        try:
            with interrupted(random.Random(seed).uniform(1e-5, 3e-3)):
                optimizer.step()
        except KeyboardInterrupt:
            pass
        moved = [not torch.equal(p, old) for p, old in zip(params, before[0], strict=True)]
        assert set(moved) in ({True}, {False})
        if all(moved):
            assert len(optimizer.state) in (0, len(params))
        else:
            assert_unchanged(optimizer, before)


def test_ctrl_c_while_a_hyperparameter_is_read():
    params = make_params([(4,)])
    set_grads(params, seed=0)
    optimizer = fused_optim.Adam(params)

    def interrupt():
        raise KeyboardInterrupt

    optimizer.param_groups[0]["lr"] = Number(0.1, interrupt)
    before = snapshot(optimizer)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.process
def test_no_memory_for_new_state():
    """Wherever an allocation of Python's fails: nothing of the step is done, or all of it."""
    testcapi = pytest.importorskip("_testcapi")
    outcomes = set()
    for count in range(0, 60):
        params = make_params([(2,)] * 3)
        set_grads(params, seed=0)
        optimizer = fused_optim.SGD(params, lr=0.1, momentum=0.9, ema_decay=0.5)
        optimizer.state[params[1]] = {"momentum_buffer": None}
        before = snapshot(optimizer)
        arguments = (
            _C.rules().index("SGD"),
            "SGD",
            optimizer.param_groups,
            optimizer.state,
            None,
            None,
        )
        try:
            testcapi.set_nomemory(count, count + 1)
            try:
                reason = _C.step(*arguments, optimizer._fused.options, None)
            finally:
                testcapi.remove_mem_hooks()
        except (MemoryError, RuntimeError):
            reason = "there is no memory"
        if reason is not None:
            assert_unchanged(optimizer, before)
            outcomes.add("failed")
        else:
            assert len(optimizer.state) == 3
            assert all(not torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
            outcomes.add("done")
    assert outcomes == {"failed", "done"}
