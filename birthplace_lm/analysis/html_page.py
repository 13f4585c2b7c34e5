"""Parts of a self-contained HTML page: escaped text, tables, and plots as inline SVG."""

import html
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from birthplace_lm.analysis.report.tables import Table, plain
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs.atomic_files import atomic_write_text

CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th { background: var(--soft) }
.wide { overflow-x: auto }
figure { margin: 1rem 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem }
figure svg { width: 100%; height: auto; display: block }
"""


def escape(value: Any) -> str:
    """A value as text of a page, on one line."""
    return html.escape(plain(value))


def html_table(table: Table) -> str:
    """A table that scrolls sideways where the window is narrow."""
    head, *rows = table
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError("a picture needs matplotlib: pip install 'birthplace-lm[plot]'")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # names are text
    return Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: Any) -> str:
    """A matplotlib figure as an element of a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def write_html(out: Path, title: str, body: str, css: str = "", script: str = "") -> None:
    """Write a page that loads nothing from elsewhere.

    Raises:
        CheckpointError: the file cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{CSS}{css}</style></head>
<body>{body}{f"<script>{script}</script>" if script else ""}</body></html>
"""
    try:
        atomic_write_text(out, page)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error
