"""The CPU's tests can run on a GPU, too, as tests/cuda has them do: nothing in them is decided or
made at import, before the device is set."""

import ast
import importlib
import pathlib

import pytest
import torch
import twins

HERE = pathlib.Path(__file__).parent
REPEATED = [p.stem.removesuffix("_on_device") for p in HERE.glob("cuda/test_*_on_device.py")]


def calls_at_import(tree):
    """Names of functions that are called while a module is imported, those in decorators too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", None))
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from calls_at_import(ast.Expression(decorator))
            continue
        yield from calls_at_import(node)


def test_there_are_such_tests():
    assert {"test_clip_grad", "test_step_options"} <= set(REPEATED)


@pytest.mark.parametrize("name", REPEATED)
def test_no_test_asks_for_the_device_at_import(name):
    tree = ast.parse((HERE / f"{name}.py").read_text())
    assert "on_cuda" not in set(calls_at_import(tree))


@pytest.mark.parametrize("name", REPEATED)
def test_no_parameter_of_a_test_is_a_tensor(name):
    """But for those without dimensions, which are numbers wherever they are."""
    module = importlib.import_module(name)
    for function in vars(module).values():
        marks = getattr(function, "pytestmark", []) if callable(function) else []
        for mark in marks:
            if mark.name != "parametrize":
                continue
            for values in mark.args[1]:
                values = values if isinstance(values, (tuple, list)) else [values]
                tensors = [value for value in values if isinstance(value, torch.Tensor)]
                assert not any(tensor.dim() for tensor in tensors), function


def test_what_is_not_for_cuda_is_skipped_when_it_runs(monkeypatch):
    test = twins.not_on_cuda("a reason")(lambda value: value)
    assert test(3) == 3
    monkeypatch.setattr(twins, "on_cuda", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="a reason"):
        test(3)
