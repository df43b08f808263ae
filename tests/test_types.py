"""What type checkers and editors see: the stubs that setup.py writes beside the package."""

import ast
import importlib
import inspect
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from twins import FUSED

import fused_optim
from fused_optim import _stubs

pytestmark = pytest.mark.process

#: A user's file. A type checker must complain of the lines marked "error", and of no other.
USERS_FILE = """
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import assert_type

import fused_optim
import fused_optim as optim
import fused_optim.sgd
from fused_optim import AdamW, FusedOptimizer, clip_grad_norm_, fuse
from fused_optim.adam import Adam, adam
from fused_optim.adamw import AdamW as AdamWOfItsModule
from fused_optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from fused_optim.lr_scheduler import NoSuchLR  # error
from fused_optim.optimizer import Optimizer
from fused_optim.swa_utils import AveragedModel

m = nn.Linear(2, 2)

# Constructors
opt = fused_optim.AdamW(m.parameters(), lr=1e-3, max_grad_norm=1.0)
assert_type(opt, AdamW)
assert_type(opt, AdamWOfItsModule)
optim.AdamW([{"params": m.parameters(), "lr": 1.0}], 1e-3, (0.9, 0.99), ema_decay=0.999)
optim.AdamW(m.named_parameters(), torch.tensor(1e-3), fused=True, capturable=True)
optim.SGD(m.parameters(), momentum=0.9, skip_nonfinite=True, zero_grads=True)
optim.Lion(m.parameters(), betas=(0.9, 0.99), max_grad_norm=None)
optim.Adam(m.parameters(), decoupled_weight_decay=True)
optim.AdamW(m.parameters(), decoupled_weight_decay=True)  # error
optim.AdamW(m.parameters(), lr="abc")  # error
optim.AdamW(m.parameters(), max_gradnorm=1)  # error
optim.AdamW(m.parameters(), max_grad_norm="1")  # error
optim.AdamW(m.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0, False, 1.0)  # error
optim.SGD(m.parameters(), zero_grads=None)  # error
optim.Lion(m.parameters(), eps=1e-8)  # error
optim.Rprop()  # error

# Attributes
assert_type(opt.grad_norm, Tensor | None)
assert_type(opt.skipped_steps, Tensor)
assert_type(opt.fallback_reason, str | None)
assert_type(opt.max_grad_norm, float | None)
assert_type(opt.ema_decay, float | None)
assert_type(opt.zero_grads, bool)
assert_type(opt.ema_parameters(), AbstractContextManager[None])
opt.max_grad_norm = None
opt.skip_nonfinite = True
with opt.ema_parameters():
    m(torch.ones(2))
opt.grad_norm = 3  # error
opt.skipped_steps = torch.zeros(())  # error
opt.fallback_reason = None  # error
opt.ema_decay = "0.9"  # error
opt.grad_norms  # error


# Steps
def tensor_closure() -> Tensor:
    loss: Tensor = m(torch.ones(2)).sum()
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    return loss


def float_closure() -> float:
    return tensor_closure().item()


def maybe(closure: Callable[[], float] | None) -> float | None:
    return opt.step(closure)


assert_type(opt.step(), None)
assert_type(opt.step(tensor_closure), Tensor)
assert_type(opt.step(float_closure), float)
opt.step(tensor_closure())  # error
opt.zero_grad(set_to_none=True)
opt.load_state_dict(opt.state_dict())
norm: Tensor = clip_grad_norm_(m.parameters(), max_norm=1.0)
clip_grad_norm_(m.parameters(), max_norm="1")  # error

# fuse() knows the class, and of an Optimizer that the result is fused
assert_type(fuse(torch.optim.AdamW(m.parameters())), AdamW)
assert_type(fuse(torch.optim.Adam(m.parameters())), Adam)
assert_type(fuse(opt), AdamW)


def fuse_any(given: torch.optim.Optimizer, lion: optim.Lion) -> FusedOptimizer:
    fuse(given).max_grad_norm = 1.0
    given.max_grad_norm = 1.0  # error
    assert_type(fuse(given), FusedOptimizer)
    return fuse(lion)


fuse(opt).max_grad_norm
fuse(m)  # error

# torch's own
scheduler: LRScheduler = CosineAnnealingLR(opt, T_max=10)
optim.lr_scheduler.StepLR(opt, 1)
optim.lr_scheduler.StepLR(m, 1)  # error
optim.swa_utils.SWALR(opt, 0.1)
AveragedModel(m)
optim.LBFGS(m.parameters(), history_size=5)
optim.LBFGS(m.parameters(), max_grad_norm=1.0)  # error
base: optim.Optimizer = optim.SparseAdam(m.parameters())
base = opt
torchs: torch.optim.Optimizer = opt
torchs_adam: torch.optim.Adam = opt
same: type[Optimizer] = torch.optim.Optimizer
functions: list[object] = [adam, fused_optim.sgd.sgd, optim.Adafactor]
version: str = optim.__version__
optim.NoSuch  # error


# A class of the user's own
class WithDefaults(optim.AdamW):
    def __init__(self, params: ParamsT, *, max_grad_norm: float = 1.0) -> None:
        super().__init__(params, lr=3e-4, betas=(0.9, 0.95), max_grad_norm=max_grad_norm)
        self.zero_gradients = False
        self.zero_grads = 3.5  # error


assert_type(fuse(WithDefaults(m.parameters())), WithDefaults)
"""


def folder_with_stubs(fresh):
    """The installed package's folder. A source folder has no stubs, since mypy would read them
    instead of the sources: it is copied to ``fresh``, and they are written there."""
    package = pathlib.Path(fused_optim.__file__).parent
    if (package.parent / "setup.py").exists():
        keep = shutil.ignore_patterns("*.so", "__pycache__")
        package = pathlib.Path(shutil.copytree(package, fresh / "fused_optim", ignore=keep))
        _stubs.write_stubs(package)
    assert (package / "__init__.pyi").exists(), f"the installation wrote no stubs to {package}"
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return folder_with_stubs(tmp_path_factory.mktemp("package"))


def run(command, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, **environment},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: there are errors
    return done.stdout


def mypy(folder, package):
    """The lines of user.py that mypy complains of."""
    path = {} if is_installed(package) else {"MYPYPATH": str(package.parent)}
    command = ["mypy", "--strict", "--config-file=", "--output=json", "user.py"]
    found = [json.loads(line) for line in run(command, folder, **path).splitlines()]
    return {e["line"]: e["message"] for e in found if e["severity"] == "error"}


def pyright(folder, package):
    """The lines of user.py that pyright complains of."""
    paths = [] if is_installed(package) else [str(package.parent)]
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": paths}))
    command = ["pyright", "--outputjson", f"--pythonpath={sys.executable}"]
    found = json.loads(run(command, folder))["generalDiagnostics"]
    return {e["range"]["start"]["line"] + 1: e["message"] for e in found}


def is_installed(package):
    return package.parent.name == "site-packages"


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_a_users_file(checker, package, tmp_path):
    (tmp_path / "user.py").write_text(USERS_FILE)
    lines = enumerate(USERS_FILE.splitlines(), start=1)
    expected = {number for number, line in lines if line.endswith("# error")}
    found = checker(tmp_path, package)
    assert {n: found[n] for n in found.keys() - expected} == {}
    assert found.keys() == expected


def stub_tree(package, name):
    path = package / f"{name}.pyi"
    return ast.parse((path if path.exists() else package / f"{name}.py").read_text())


def run_stub(package, name):
    """A stub is Python, too: its names as they are when it is run, classes without their bases."""
    tree = stub_tree(package, name)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.bases = []
    names = {"__name__": f"stub_of_{name}"}
    exec(compile(tree, name, "exec"), names)
    return names


@pytest.mark.parametrize("cls", FUSED, ids=lambda cls: cls.__name__)
def test_constructors_are_those_of_the_stubs(cls, package):
    names = run_stub(package, cls.__module__.removeprefix("fused_optim."))
    assert names[cls.__name__].__doc__ == cls.__doc__
    shown = inspect.signature(names[cls.__name__].__init__)
    assert inspect.signature(cls.__init__) == shown
    assert str(inspect.signature(cls.__init__)) == str(shown)
    assert list(shown.parameters)[-10:] == [
        *("max_grad_norm", "skip_nonfinite", "zero_grads", "ema_decay", "ema_dtype"),
        *("norm_group", "state_dtype", "master_bits", "stochastic_rounding", "rounding_seed"),
    ]


def test_the_mixins_stub_has_its_public_names(package):
    (mixin,) = (n for n in stub_tree(package, "optimizer").body if isinstance(n, ast.ClassDef))
    shown = {getattr(n, "name", None) or ast.unparse(n.target) for n in mixin.body[1:]}
    ours = {
        name
        for cls in fused_optim.FusedOptimizer.__mro__[:-1]
        for name in vars(cls)
        if not name.startswith("_")
    }
    assert {name for name in shown if not name.startswith("_")} == ours
    params = [torch.zeros(1)]
    made, torchs = (public_attributes(m.SGD(params)) for m in (fused_optim, torch.optim))
    assert made - shown == torchs


def public_attributes(instance):
    return {name for name in vars(instance) if not name.startswith("_")}


def exported(package, name):
    nodes = [n for n in stub_tree(package, name).body if isinstance(n, ast.ImportFrom)]
    return {alias.asname for node in nodes for alias in node.names} - {None}


def test_stubs_export_what_the_modules_have(package):
    written = {path.stem for path in package.glob("*.pyi")} - {"_C", "__init__"}
    torchs = {n for n in dir(fused_optim) if inspect.ismodule(getattr(fused_optim, n))}
    assert "lr_scheduler" in torchs
    for name in written | torchs:
        module = importlib.import_module(f"fused_optim.{name}")
        assert exported(package, name) <= set(dir(module)), name
        assert set(getattr(module, "__all__", [])) <= set(run_stub(package, name)), name


def test_the_packages_stub_exports_its_dir(package):
    public = {name for name in dir(fused_optim) if not name.startswith("_")}
    assert exported(package, "__init__") == {*public, "__version__"}
    assert run_stub(package, "__init__")["__all__"] == sorted(fused_optim.__all__)


def test_dir_has_public_names_only():
    public = {name for name in dir(fused_optim) if not name.startswith("_")}
    folder = pathlib.Path(torch.optim.__file__).parent
    mirrored = {path.stem for path in folder.glob("[a-z]*.py")}
    assert public == {*fused_optim.__all__, *mirrored} - {"__version__"}
    assert {"adam", "lr_scheduler", "optimizer", "swa_utils", "AdamW", "fuse", "Lion"} <= public
    assert "__version__" in dir(fused_optim)
    assert not {"convert", "clip_grad", "step_options", "torch_step"} & public


def test_the_stubs_themselves_are_in_order(package, tmp_path):
    """As a checker of this package sees them: overloads that fit, overrides that torch's allow."""
    folder = tmp_path / "fused_optim"
    shutil.copytree(package, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    settings = {"include": ["fused_optim/*.pyi"], "exclude": ["fused_optim/_C.pyi"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["pyright", "--outputjson", f"--pythonpath={sys.executable}"]
    found = json.loads(run(command, tmp_path))
    assert found["summary"]["filesAnalyzed"] >= 15
    assert [(e["file"], e["message"]) for e in found["generalDiagnostics"]] == []
