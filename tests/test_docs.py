"""The documentation says what is so: its Python runs, and what it should name is there."""

import pathlib
import re
import runpy

import pytest
import torch
from twins import FUSED

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = DOCS / "pages"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")

FENCE = re.compile(r"^(?P<before>[^\n]*)\n```python\n(?P<code>.*?)^```$", re.M | re.S)
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.M)
#: What a page says of a block, in a comment just above it, that can't run everywhere.
NOT_RUN = "<!-- not run: "


def pages():
    return [ROOT / "README.md", *sorted(p for p in PAGES.rglob("*.md") if "results" not in p.parts)]


def blocks():
    """Each block of Python in the documentation that needs torch and fused_optim only."""
    for page in pages():
        text = page.read_text()
        for match in FENCE.finditer(text):
            if INCLUDED.search(match["code"]) or match["before"].startswith(NOT_RUN):
                continue
            line = text[: match.start("code")].count("\n") + 1
            yield pytest.param(match["code"], id=f"{page.relative_to(ROOT)}:{line}")


def stand_ins():
    """What readers have already: a model whose gradients are there, data, an evaluation."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    inputs = torch.randn(32, 8)
    loader = [(rows, rows.sum(dim=1, keepdim=True)) for rows in inputs.split(8)]
    model(inputs).square().mean().backward()
    return {"torch": torch, "model": model, "loader": loader, "evaluate": lambda m: m(inputs)}


@pytest.mark.parametrize("code", list(blocks()))
def test_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__", **stand_ins()})


def test_blocks_are_found():
    of_readme = [p for p in blocks() if p.id.startswith("README.md")]
    assert len(of_readme) >= 2 and len(list(blocks())) >= 10


def test_every_snippet_is_on_a_page_and_compiles():
    included = {name for page in pages() for name in INCLUDED.findall(page.read_text())}
    snippets = {p.name for p in (DOCS / "snippets").glob("*.py")}
    assert snippets and snippets == {name for name in included if "/" not in name}
    for name in included:
        path = ROOT / name if "/" in name else DOCS / "snippets" / name
        assert path.suffix != ".py" or compile(path.read_text(), name, "exec")
        assert path.is_file()


def test_replaced_parameters(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(DOCS / "snippets" / "gaussian_splatting.py"))
    assert names["points"]["means"].shape == (1400, 3)
    assert "(1400, 3)" in capsys.readouterr().out
    for p in names["points"].values():
        assert names["optimizer"].state[p]["exp_avg"].shape == p.shape


def test_every_optimizer_has_its_page():
    config = (DOCS / "mkdocs.yml").read_text()
    fused, api = (PAGES / "what-is-fused.md").read_text(), (PAGES / "api/index.md").read_text()
    for cls in FUSED:
        page = f"{cls.__name__.lower()}.md"
        assert (PAGES / "api" / page).read_text().strip() == f"::: fused_optim.{cls.__name__}"
        assert f"{cls.__name__}: api/{page}" in config
        assert f"(api/{page})" in fused and f"({page})" in api


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(\S+\.md)$", (DOCS / "mkdocs.yml").read_text(), re.M)
    there = {str(page.relative_to(PAGES)) for page in pages()[1:]}
    assert there == {*listed} - {"results/README.md"}


def test_links_between_pages_lead_somewhere():
    for page in [*pages(), ROOT / "benchmarks/results/README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), (page, target)


def test_every_environment_variable_is_listed():
    listed = (PAGES / "environment.md").read_text()
    asked = re.compile(r"(?:environ|getenv)\W{1,8}(?:get\W{1,3})?(FUSED_OPTIM_\w+)")
    files = [ROOT / "setup.py", *ROOT.glob("fused_optim/*.py"), *ROOT.glob("csrc/**/*.cpp")]
    found = {name for path in files for name in asked.findall(path.read_text())}
    assert found >= {"FUSED_OPTIM_CUDA", "FUSED_OPTIM_ISA"}
    assert not [name for name in found if f"`{name}`" not in listed]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 90
