"""``--report``: one self-contained HTML page with the plots and tables of a run."""

import base64
import html
import io
import pathlib

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from benchmarks.report import Content, describe, remarks, tables

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em;
       color: #222; }
figure { margin: 1.5em 0; overflow-x: auto; } img { max-width: 100%; border: 1px solid #ddd; }
img[alt="ratios"], img[alt="training"], img[alt="cold"] { max-width: none; width: 1800px; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.25; }
h1 { margin-bottom: 0.2em; } .machine { color: #555; }
"""

CAPTIONS = {
    "ratios.png": "How many times faster a step is than every other implementation's: the median "
    "over rounds in which all run in turn. Above the dashed line fused_optim is faster.",
    "training.png": "The same of a step with clipping, zeroing and averaging: inside the step, and "
    "in torch's functions around the others'.",
    "cold.png": "The same of a step that finds nothing in the caches, as in training.",
    "bandwidth.png": "Where tensors are large, memory sets the pace: the share of what the "
    "machine's memory does in the same rounds.",
    "scaling.png": "A step over the number of tensors and over the size of one. Nothing can be "
    "below the dashed line for long but what stays in the cache.",
}


def _table_html(content: Content) -> str:
    parts = []
    for table in tables(content):
        console = Console(record=True, width=400, file=io.StringIO())
        console.print(table)
        parts.append(
            console.export_html(
                inline_styles=True, code_format="<pre>{code}</pre>", theme=DEFAULT_TERMINAL_THEME
            )
        )
    return "\n".join(parts)


def render(content: Content, images: list[pathlib.Path]) -> str:
    """The page: no script, nothing fetched from elsewhere."""
    figures = []
    for image in images:
        data = base64.b64encode(image.read_bytes()).decode()
        caption = html.escape(CAPTIONS[image.name])
        figures.append(
            f'<figure><img alt="{image.stem}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in remarks(content))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>fused_optim benchmarks</title><style>{STYLE}</style></head><body>"
        "<h1>fused_optim benchmarks</h1>"
        f'<p class="machine">{html.escape(describe(content.machine))}</p>'
        + "\n".join(figures)
        + "<h2>Tables</h2>"
        + _table_html(content)
        + (f"<h2>Not measured</h2><ul>{lines}</ul>" if lines else "")
        + "</body></html>\n"
    )
