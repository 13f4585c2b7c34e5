"""The runs of a folder as a pandas data frame."""

from pathlib import Path
from typing import TYPE_CHECKING

from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.differences import differences
from birthplace_lm.analysis.report.summary import records
from birthplace_lm.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def report(folder: str | Path) -> "DataFrame":
    """One row per run: the settings that vary, seed, exact match with its interval, cost, state, path.

    `difference` is that of the mean over seeds from the best setting, with its standard error.

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
    return DataFrame(records(runs, differences(runs)))
