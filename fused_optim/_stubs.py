"""Writes the stubs (.pyi) for type checkers and editors: ``python fused_optim/_stubs.py FOLDER``.

When the package runs, each fused class takes its constructor from its parent, and modules of
torch.optim get a second name. Type checkers run nothing, so the same is written down for them, from
the sources of the torch that is installed. ``setup.py`` does so in each build, before the extension
is compiled: sources are parsed here, nothing of this package is imported.
"""

import ast
import copy
import functools
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TypeGuard

HEADER = '"""Written by fused_optim/_stubs.py from {source}."""\n\n'


class Source:
    """A module as its source has it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _source_path(name)
        self.body = ast.parse(self.path.read_text(encoding="utf-8")).body

    @functools.cached_property
    def imports(self) -> dict[str, str]:
        """The statement that imports each name; the last one, as when the module runs."""
        found: dict[str, str] = {}
        conditional = [node for part in self.body if isinstance(part, ast.If) for node in part.body]
        for node in [*conditional, *self.body]:
            if isinstance(node, ast.Import):
                found |= {a.asname or a.name: ast.unparse(ast.Import([a])) for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= self._imported_from(node)
        return found

    def _imported_from(self, node: ast.ImportFrom) -> dict[str, str]:
        package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        if node.names[0].name == "*":
            return {name: f"from {module} import {name}" for name in load(module).public}
        return {a.asname or a.name: f"from {module} import {ast.unparse(a)}" for a in node.names}

    @functools.cached_property
    def definitions(self) -> dict[str, ast.ClassDef | ast.FunctionDef]:
        kinds = (ast.ClassDef, ast.FunctionDef)
        return {node.name: node for node in self.body if isinstance(node, kinds)}

    @functools.cached_property
    def public(self) -> set[str]:
        """``__all__``, and what a star brings along."""
        names: set[str] = set()
        for node in self.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names.update(ast.literal_eval(node.value))
            elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                names.update(self._imported_from(node))
        return names


load = functools.cache(Source)


def _source_path(name: str) -> pathlib.Path:
    package, *rest = name.split(".")
    if package == "fused_optim":
        root = pathlib.Path(__file__).parent
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"the stubs are made from {package}, which is not installed")
        root = pathlib.Path(spec.submodule_search_locations[0])
    path = root.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _public_modules(package: str) -> list[str]:
    names = sorted(path.stem for path in load(package).path.parent.glob("*.py"))
    return [name for name in names if not name.startswith("_")]


def _find_class(source: Source, name: str) -> tuple[Source, ast.ClassDef]:
    """The class that an expression such as ``torch.optim.Adam`` means, and where it is defined."""
    module, _, attribute = name.rpartition(".")
    if module:
        return _find_class(load(module), attribute)
    found = source.definitions.get(name)
    if isinstance(found, ast.ClassDef):
        return source, found
    _, module, _, imported, *_ = source.imports[name].split()  # from MODULE import NAME ...
    return _find_class(load(module), imported)


def _function(owner: ast.ClassDef | Source, name: str) -> ast.FunctionDef:
    functions = (node for node in owner.body if isinstance(node, ast.FunctionDef))
    return next(function for function in functions if function.name == name)


def _declaration(function: ast.FunctionDef) -> ast.FunctionDef:
    """The function without its body and without decorators that don't matter to its type."""
    declared = copy.deepcopy(function)
    declared.body = [ast.Expr(ast.Constant(...))]
    declared.decorator_list = [
        decorator
        for decorator in function.decorator_list
        if re.match(r"(property|classmethod|staticmethod|\w+\.setter)$", ast.unparse(decorator))
    ]
    return declared


def _overload(
    function: ast.FunctionDef, argument: str, result: str, *, keep_default: bool = False
) -> ast.FunctionDef:
    """One overload of a function, which differ in the type of their last argument."""
    declared = _declaration(function)
    declared.args.args[-1].annotation = ast.parse(argument, mode="eval").body
    declared.returns = ast.parse(result, mode="eval").body
    declared.decorator_list = [ast.Name("overload")]
    if not keep_default:
        declared.args.defaults = []
    return declared


def _class(node: ast.ClassDef, bases: list[ast.expr], members: list[ast.stmt]) -> ast.ClassDef:
    """With its docstring: for a constructor that has none, editors show that of a base."""
    declared = copy.copy(node)
    declared.bases, declared.keywords, declared.body = bases, [], [node.body[0], *members]
    return declared


class Stub:
    """The text of one stub, while it grows."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.imports: set[str] = set()
        self.body: list[str] = []

    def export(self, name: str, statement: str) -> None:
        """Stubs show what they import only as ``X as X``."""
        self.imports.add(f"{statement.partition(' as ')[0]} as {name}")

    def add(self, node: ast.stmt, source: Source) -> None:
        """Adds a declaration, and imports what its names mean in ``source``."""
        self.body.append(ast.unparse(ast.fix_missing_locations(node)))
        self.need(node, source)

    def need(self, node: ast.AST, source: Source) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in source.imports:
                self.imports.add(source.imports[part.id])

    def text(self) -> str:
        exported = {line.partition(" as ")[0] for line in self.imports if " as " in line}
        imports = sorted(self.imports - exported)
        return HEADER.format(source=self.source) + "\n".join([*imports, "", *self.body]) + "\n"


def _fused_base() -> tuple[Source, ast.ClassDef]:
    return _find_class(load("fused_optim.optimizer"), "FusedOptimizer")


def _is_fused(node: ast.AST | None) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and any(k.arg == "rule" for k in node.keywords)


def _fused_classes() -> list[tuple[Source, ast.ClassDef]]:
    """Each fused class; those that derive from another one come before it."""

    def count_fused_parents(source: Source, node: ast.ClassDef) -> int:
        parents = (_find_class(source, ast.unparse(base)) for base in node.bases)
        return sum(1 + count_fused_parents(*parent) for parent in parents if _is_fused(parent[1]))

    modules = (load(f"fused_optim.{name}") for name in _public_modules("fused_optim"))
    found = [(m, node) for m in modules for node in m.definitions.values() if _is_fused(node)]
    return sorted(found, key=lambda pair: -count_fused_parents(*pair))


def _add_fused_class(stub: Stub, source: Source, node: ast.ClassDef) -> None:
    """The class with its parent's constructor, and then the step options."""
    options_source, base = _fused_base()
    parent_source, parent = _find_class(source, ast.unparse(node.bases[-1]))
    init = _declaration(_function(parent, "__init__"))
    stub.need(init, parent_source)
    options = _function(base, "__init__").args
    for argument in options.kwonlyargs:
        stub.need(argument, options_source)
    init.args.kwonlyargs += options.kwonlyargs
    init.args.kw_defaults += options.kw_defaults
    stub.add(_class(node, node.bases, [init]), source)


def _add_fused_base(stub: Stub, source: Source, node: ast.ClassDef) -> None:
    """The mixin. Its ``step`` takes closures that return a Tensor, as most do: by its types
    torch's own wants a float, but those of torch's classes have no types and let any through."""
    stub.imports |= {"from collections.abc import Callable", "from typing import TypeVar, overload"}
    stub.imports.add("from torch.optim.optimizer import Optimizer")
    stub.body.append("LossT = TypeVar('LossT')")
    stub.add(_class(node, [ast.Name("Optimizer")], list(_members(node))), source)


def _members(node: ast.ClassDef) -> Iterator[ast.stmt]:
    for option in _function(node, "__init__").args.kwonlyargs:
        assert option.annotation is not None, f"{option.arg} has no type"
        yield ast.AnnAssign(ast.Name(option.arg), option.annotation, None, 1)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "step":
            yield _overload(part, "None", "None", keep_default=True)
            yield _overload(part, "Callable[[], LossT]", "LossT")
            yield _overload(part, "Callable[[], LossT] | None", "LossT | None", keep_default=True)
        elif isinstance(part, ast.FunctionDef) and re.match(r"[^_]|__init_", part.name):
            yield _declaration(part)
        elif isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            yield ast.AnnAssign(part.target, part.annotation, None, 1)


def _module_stub(name: str) -> Stub:
    """Each public name of a module of this package: a class that is defined there, or an import."""
    source = load(name)
    stub = Stub(source.path.name)
    for public in sorted(source.public):
        node = source.definitions.get(public)
        if node is None:
            stub.export(public, source.imports[public])
        elif _is_fused(node):
            _add_fused_class(stub, source, node)
        elif node is _fused_base()[1]:
            _add_fused_base(stub, source, node)
    return stub


def _alias(name: str) -> Stub:
    """A module of torch.optim under this package's name, with all that is defined there.

    A .py file, though Python finds torch's module and never runs it: pyright warns of a module that
    has a stub only.
    """
    source = load(f"torch.optim.{name}")
    stub = Stub(source.name)
    for defined in source.public | set(source.definitions):
        stub.export(defined, f"from {source.name} import {defined}")
    return stub


def _package_stub(modules: Iterable[str]) -> Stub:
    """The package: its ``__all__``, and the modules that torch.optim has, too."""
    stub = _module_stub("fused_optim")
    for name in modules:
        stub.imports.discard(f"from torch.optim import {name} as {name}")
        stub.export(name, f"from fused_optim import {name}")
    stub.body.append(f"__all__ = {sorted(load('fused_optim').public)}")
    return stub


def _convert_stub() -> Stub:
    """``fuse`` gives each class of torch its fused one; of an Optimizer no more is known."""
    source = load("fused_optim.convert")
    stub = Stub(source.path.name)
    function = _function(source, "fuse")
    stub.imports |= {"from typing import TypeVar, overload", "import torch"}
    stub.imports.add("from fused_optim.optimizer import FusedOptimizer")
    stub.body.append("FusedT = TypeVar('FusedT', bound=FusedOptimizer)")
    stub.add(_overload(function, "FusedT", "FusedT"), source)
    for module, node in _fused_classes():
        parent = ast.unparse(node.bases[-1])
        if parent.startswith("torch."):
            stub.imports.add(f"from {module.name} import {node.name}")
            stub.add(_overload(function, parent, node.name), source)
    stub.add(_overload(function, "torch.optim.Optimizer", "FusedOptimizer"), source)
    return stub


def stubs() -> dict[str, str]:
    """The text of each file, by its name."""
    torchs = _public_modules("torch.optim")
    faces = ["fused_optim.optimizer", *(source.name for source, _ in _fused_classes())]
    found = {name.rpartition(".")[2]: _module_stub(name) for name in faces}
    aliases = {f"{name}.py": _alias(name).text() for name in torchs if name not in found}
    found |= {"__init__": _package_stub(torchs), "convert": _convert_stub()}
    return {f"{name}.pyi": stub.text() for name, stub in found.items()} | aliases


def write_stubs(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in stubs().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python fused_optim/_stubs.py FOLDER")
    write_stubs(pathlib.Path(sys.argv[1]))
