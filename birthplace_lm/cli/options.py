"""Arguments and helpers that several commands of `birthplace-lm` share."""

import json
import math
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from birthplace_lm.errors import InputError


def _complete_runs(typed: str) -> list[str]:
    """Shell completion: run directories that begin with the typed text, also those in `runs`."""
    files = [*Path().glob(f"{typed}*/config.*"), *Path("runs").glob("*/config.yaml")]
    return sorted({str(file.parent) for file in files if str(file).startswith(typed)})


Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory or an export.", autocompletion=_complete_runs),
]
NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="PACKAGE", help="Package of yours whose classes the run names; repeatable."
    ),
]


class Which(StrEnum):
    """Which checkpoint of a run."""

    last = "last"
    best = "best"


Checkpoint = Annotated[
    Which, typer.Option("--checkpoint", help="best: of a run with callbacks=best_checkpoint.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


def check_output(option: str, file: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        InputError: its folder is missing or read-only, its name does not end in one of `suffixes`, or the
            path is a folder or a device.
    """
    if file is None:
        return
    if suffixes and file.suffix not in suffixes:
        raise InputError(f"{option} {file}: must be a {' or '.join(suffixes)} file in an existing folder")
    is_special = file.exists() and not file.is_file()
    if is_special or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{option} {file}: cannot be written; give a file name in an existing folder")


def check_page(page: Path | None) -> None:
    """Refuse --html if the file cannot be written or matplotlib is missing, before anything is computed."""
    check_output("--html", page)
    if page is not None:
        from birthplace_lm.analysis.html_page import require_matplotlib  # it imports rich

        require_matplotlib()


def check_distinct(runs: Sequence[Path]) -> None:
    """Refuse a run that is named twice.

    Raises:
        InputError: one is.
    """
    resolved = [run.resolve() for run in runs]
    for run, path in zip(runs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise InputError(f"{run}: named twice")


def print_json(content: object) -> None:
    """Print one document, with null for what JSON does not have."""
    print(json.dumps(_without_nan(content), ensure_ascii=False, indent=2, allow_nan=False))


def _without_nan(value: object) -> object:
    """With null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
