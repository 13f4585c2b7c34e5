"""Tables of text, for a terminal, a pipe or Markdown."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

Table = list[list[str]]  # the first row is the head
MIN_ROOM = 20  # characters of a column that is broken into lines


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, or for a pipe with every row on one line.

    If only its widest column has to be broken into lines, no other is.
    """
    if not sys.stdout.isatty():
        print(as_text(table), end="\n\n")
        return
    head, *rows = table
    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widest = widths.index(max(widths))
    room = console.width - sum(widths) + max(widths) - 3 * len(widths)
    columns = [
        Column(Text(name), overflow="fold", no_wrap=i != widest and room >= MIN_ROOM)
        for i, name in enumerate(head)
    ]
    drawn = Grid(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def as_text(table: Table, rule: bool = False) -> str:
    """Aligned columns, numbers to the right, and if wanted a line below the head."""
    columns = [_aligned(column) for column in zip(*table, strict=True)]
    head, *rows = ("  ".join(row).rstrip() for row in zip(*columns, strict=True))
    return "\n".join([head, *(["─" * max(map(len, [head, *rows]))] if rule else []), *rows])


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    numeric = any(column[1:]) and all(re.fullmatch(r"[\d.,/%]*", cell) for cell in column[1:])
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in column]


def fit(table: Table, width: int, optional: Sequence[str]) -> Table:
    """A table whose rows are at most `width` characters as text.

    Optional columns are left out, the first ones first; if that is not enough, the longest cells end in "…".
    """
    for heading in optional:
        if _width(table) <= width:
            return table
        if heading in table[0]:
            at = table[0].index(heading)
            table = [row[:at] + row[at + 1 :] for row in table]
    while _width(table) > width:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        widest = widths.index(max(widths))
        room = max(widths) - 1
        if room < 1:
            break
        table = [
            [
                f"{cell[: room - 1]}…" if i == widest and len(cell) > room else cell
                for i, cell in enumerate(row)
            ]
            for row in table
        ]
    return table


def _width(table: Table) -> int:
    return max(map(len, as_text(table).split("\n")))


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
