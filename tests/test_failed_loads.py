"""Loads that fail: the optimizer is as it was."""

import copy

import pytest
import torch
from twins import assert_unchanged, make_params, set_grads, snapshot

import fused_optim


def _raise(*_):
    raise KeyError("of a user's")


class _Raises(fused_optim.AdamW):
    def __setstate__(self, state):
        super().__setstate__(state)
        if "defaults" not in state:
            self.state[next(iter(self.state))].clear()
            _raise()


@pytest.mark.parametrize("where", ["__setstate__", "hook", "this class"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_a_load_that_fails_changes_nothing(where, dtype, monkeypatch):
    """Whatever fails once torch has put what it loads in the place of what was there."""
    cls = _Raises if where == "__setstate__" else fused_optim.AdamW
    params = make_params([(5000,), (3,)])
    optimizer = cls(params, lr=0.5, state_dtype=dtype)
    other = fused_optim.AdamW(make_params([(5000,), (3,)]), lr=0.25, master_bits=24)
    for each in (optimizer, other):
        set_grads(each.param_groups[0]["params"], seed=0)
        each.step()
    if where == "hook":
        optimizer.register_load_state_dict_post_hook(_raise)
    if where == "this class":  # half way through the states
        target = "encode_as_asked" if dtype == torch.int8 else "dtype_after_loading"
        monkeypatch.setattr(f"fused_optim.checkpoints.{target}", _raise)
    before, groups, state = snapshot(optimizer), optimizer.param_groups, optimizer.state
    kept = copy.deepcopy([{**group, "params": None} for group in groups])
    with pytest.raises(KeyError, match="of a user's"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups is groups and optimizer.state is state
    assert [{**group, "params": None} for group in groups] == kept
    assert_unchanged(optimizer, before)
    assert optimizer._fused.loading is None
