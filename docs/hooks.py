"""Hooks of the site's build: formulas become MathML, which browsers render without any script.

A block is a fence of language ``math``; in a line it is an inline code ``#!math x``.
"""

import html
import logging
import pathlib
from typing import Any

from math_core import LatexError, LatexToMathML

_log = logging.getLogger("mkdocs.hooks.formulas")
_HERE = pathlib.Path(__file__).parent
_CONVERTER = LatexToMathML(fancy_error=False)


def _mathml(source: str, is_block: bool) -> str:
    if is_block and "&" in source:
        source = rf"\begin{{align*}}{source}\end{{align*}}"
    try:
        return _CONVERTER.convert_with_local_state(source, displaystyle=is_block)
    except LatexError as error:  # a warning ends a strict build; an exception would be swallowed
        _log.warning("%s in the formula %s", error, source)
        raise


def _fence(source: str, *_: object, **__: object) -> str:
    return f'<div class="formula">{_mathml(source, True)}</div>'


def _inline(source: str, language: str, css_class: str, md: Any) -> str:
    return md.htmlStash.store(_mathml(html.unescape(source), False))


def on_config(config: Any) -> None:
    """Says what YAML cannot: functions of this module, and paths that don't depend on where the
    build was started."""
    options = config["mdx_configs"]
    fence = {"name": "math", "class": "formula", "format": _fence}
    options.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    inline = {"name": "math", "class": "formula", "format": _inline}
    options.setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [inline]
    options["pymdownx.snippets"]["base_path"] = [str(_HERE / "snippets"), str(_HERE.parent)]
