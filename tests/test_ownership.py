"""An optimizer keeps nothing that it should give back."""

import gc
import pathlib
import weakref

import pytest
from twins import make_params, set_grads


def test_an_optimizer_goes_with_its_last_reference(optimizer_class):
    """No cycle keeps its memory until the collector comes."""
    params = make_params([(5,)])
    set_grads(params, seed=0)
    optimizer = optimizer_class(params, max_grad_norm=1.0, ema_decay=0.5)
    optimizer.step()
    with optimizer.ema_parameters():
        pass
    repr(optimizer), optimizer.state_dict()
    reference = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.process
def test_steps_leave_nothing_behind(optimizer_class):
    """References are given back: the tensors of 200 optimizers are gone when they are."""
    statm = pathlib.Path("/proc/self/statm")

    def resident():
        gc.collect()
        return int(statm.read_text().split()[1]) * 4096

    def run():
        for _ in range(100):
            params = make_params([(20_000,)])
            set_grads(params, seed=0)
            optimizer = optimizer_class(params, max_grad_norm=1.0, ema_decay=0.5)
            optimizer.step()
            with optimizer.ema_parameters():
                pass

    run()
    before = resident()
    run()
    assert resident() - before < 100 * 20_000 * 4 / 2
