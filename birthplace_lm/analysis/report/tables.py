"""Tables of text, for a terminal, a pipe or Markdown."""

import re
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

Table = list[list[str]]  # the first row is the head


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, or for a pipe with every row on one line."""
    if not sys.stdout.isatty():
        print(as_text(table), end="\n\n")
        return
    head, *rows = table
    drawn = Grid(*(Column(name, overflow="fold") for name in head), box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)


def as_text(table: Table) -> str:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    head, *rows = [[markdown_cell(cell) for cell in row] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def markdown_cell(value: Any) -> str:
    """A value as the text of a cell, whatever is in it."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", plain(value))


def plain(value: Any) -> str:
    """A value as printable text on one line."""
    return "".join(c if c.isprintable() else " " for c in str(value))
