"""The runs of a folder as a pandas data frame."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from birthplace_lm.analysis.report.collect import Run, find_runs
from birthplace_lm.analysis.report.summary import to_record, varying_keys
from birthplace_lm.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def report(folder: str | Path) -> "DataFrame":
    """One row per run: the settings that vary, seed, exact match with its interval, cost, state, path.

    Raises:
        InputError: the folder has no run, or pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise InputError(
            "report: needs pandas; pip install 'birthplace-lm[pandas]', or write a file with"
            f" birthplace-lm report {folder} --format csv"
        ) from error
    runs = find_runs(Path(folder))
    keys = varying_keys(runs)
    return DataFrame(
        [{**to_record(run, keys), **{n: _value(run, key) for key, n in keys.items()}} for run in runs]
    )


def _value(run: Run, key: str) -> Any:
    """Numbers and truth values as they are, so that a frame can be sorted and plotted; the rest as text."""
    value = run.config.get(key)
    return value if isinstance(value, bool | int | float | None) else run.display(key)
