"""Griffe extension: docstrings are written for Sphinx, this makes them what the site renders."""

import inspect
import re
import textwrap
from typing import Any

import griffe

_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<line>[^\n]*)\n(?P<body>(?:(?P=indent) +[^\n]*\n|[ ]*\n)*)", re.M
)
_MATH = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(class|func|meth|attr|mod):`([^`]+)`")


def _fence(match: re.Match[str]) -> str:
    formula = match["line"].strip() or textwrap.dedent(match["body"]).strip()
    # What was blank after it stays: the docstring's sections are told apart by blank lines.
    lines = ["```math", *formula.splitlines(), "```", ""]
    return "\n".join(match["indent"] + line if line else "" for line in lines) + "\n"


def _reference(match: re.Match[str]) -> str:
    """A link, where the site has such an object; elsewhere, as for torch's, its name."""
    role, name = match.groups()
    owner = {"class": "fused_optim.", "func": "fused_optim.", "mod": ""}
    prefix = owner.get(role, "fused_optim.FusedOptimizer.") if "." not in name else ""
    shown = f"{name}()" if role in ("func", "meth") else name
    return f'<autoref identifier="{prefix}{name}" optional><code>{shown}</code></autoref>'


def to_markdown(docstring: str) -> str:
    """The docstring with formulas as fences and inline code, and roles as references."""
    text = _BLOCK.sub(_fence, docstring + "\n")
    text = _MATH.sub(lambda m: f"`#!math {' '.join(m[1].split())}`", text)
    return _ROLE.sub(_reference, text).rstrip("\n")


class SphinxRoles(griffe.Extension):
    """Rewrites each docstring before its sections are read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(inspect.cleandoc(obj.docstring.value))
