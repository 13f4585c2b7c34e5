"""Arguments and helpers that several commands of `birthplace-lm` share."""

import json
import math
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


def check_page(page: Path | None) -> None:
    """Refuse a file of --html that cannot be written, before anything is computed."""
    if page is not None and (not page.parent.is_dir() or (page.exists() and not page.is_file())):
        raise InputError(f"--html {page}: cannot be written; give a file name in an existing folder")


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
