"""Summaries of runs: tables of runs and of seeds, CSV, JSON."""

import csv
import io
import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import stdev
from typing import Any

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.differences import Difference, Differences
from birthplace_lm.analysis.report.groups import (
    counts,
    exact_matches,
    group_by_settings,
    interval_over_people,
    mean_exact_match,
    mean_text,
    without_copies,
)
from birthplace_lm.analysis.report.settings import (
    GROUPS,
    NAMES,
    common_settings,
    seed_varies,
    shown_settings,
    varying_settings,
)
from birthplace_lm.analysis.report.tables import Table, as_markdown, as_text, fit, plain
from birthplace_lm.runs.metrics import RunMetrics

INTERVAL = "95 % interval"  # headings of columns
DIFFERENCE = "difference"
# Columns that a narrow terminal leaves out, the first ones first.
OPTIONAL_COLUMNS = (
    "parameters",
    "million characters",
    "minutes",
    "loss",
    "bits",
    "majority",
    INTERVAL,
    "correct",
    DIFFERENCE,
)


def as_tables(runs: Sequence[Run], markdown: bool = False, compared: Differences | None = None) -> str:
    """The tables of runs and seeds with notes: as wide as the terminal, or with everything for a pipe.

    Args:
        compared: adds a column.
    """
    compared = compared or Differences()
    in_terminal = sys.stdout.isatty() and not markdown
    tables = [table_of_runs(runs, paths=not in_terminal, compared=compared)]
    if seed_varies(runs):
        tables.append(table_of_seeds(runs, compared))
    lines = notes(runs)
    if in_terminal:
        width = shutil.get_terminal_size().columns
        tables = [fit(table, width, OPTIONAL_COLUMNS) for table in tables]
        lines.insert(1, naming_note(runs))
    if any(INTERVAL in table[0] for table in tables):
        lines += interval_note(runs)
    if any(DIFFERENCE in table[0] for table in tables):
        lines += difference_note(runs, compared)
    lines += [*compared.failures, *failures(runs)]
    if in_terminal:
        lines = [line for text in lines for line in textwrap.wrap(text, width)]
    texts = [as_markdown(table) if markdown else as_text(table, rule=in_terminal) for table in tables]
    return "\n\n".join([*texts, "\n".join(lines)])


def table_of_runs(
    runs: Sequence[Run],
    paths: bool = True,
    learned_after: Mapping[Run, int | None] | None = None,
    compared: Differences | None = None,
) -> Table:
    """One row per run, with the settings that vary.

    Args:
        paths: name each run by its path; otherwise by the end of its directory's name.
        learned_after: for a further column, of some runs `curves.characters_until_half`.
        compared: for a further column, unless a table of seeds has it.
    """
    settings = shown_settings(runs)
    finished = [run.metrics for run in runs if run.metrics]
    cells: dict[str, Callable[[RunMetrics], str]] = {
        "dev": lambda metrics: f"{metrics.dev.exact_match:.1%}",
        INTERVAL: lambda metrics: _interval(metrics.dev.interval),
        "correct": lambda metrics: f"{metrics.dev.correct}/{metrics.dev.total}",
        "held out": lambda metrics: f"{metrics.holdout.exact_match:.1%}" if metrics.holdout else "",
        "majority": lambda metrics: f"{metrics.baseline.exact_match:.1%}",
        "parameters": lambda metrics: f"{metrics.parameters:,}",
        "bits": lambda metrics: "" if metrics.bits is None else f"{metrics.bits:.2f}",
        "loss": lambda metrics: "" if metrics.loss is None else f"{metrics.loss:.3f}",
        "million characters": lambda metrics: f"{metrics.characters / 1e6:.2f}",
        "minutes": lambda metrics: f"{_seconds(metrics) / 60:.1f}",
    }
    if not any(metrics.holdout for metrics in finished):
        del cells["held out"]
    for constant in ("majority", "parameters"):
        if len({cells[constant](metrics) for metrics in finished}) < 2:
            del cells[constant]
    columns = {setting.heading: [setting.display(run) for run in runs] for setting in settings}
    if seed_varies(runs):
        columns["seed"] = [run.display("seed") for run in runs]
    for name, cell in cells.items():
        columns[name] = [cell(run.metrics) if run.metrics else "" for run in runs]
        if name == INTERVAL and compared and compared.of and not seed_varies(runs):
            columns[DIFFERENCE] = [str(compared.of.get(run, "")) for run in runs]
        if name == "million characters" and learned_after is not None:
            reached = [learned_after.get(run) for run in runs]
            columns["until 50%"] = ["" if count is None else f"{count / 1e6:.2f}" for count in reached]
    if any(run.state != "done" for run in runs):
        columns["state"] = [
            run.state if run.has_error or not run.reason else f"{run.state}, {run.reason}" for run in runs
        ]
    columns["run directory" if paths else "run"] = [plain(run.path) if paths else run.name for run in runs]
    return [[*columns], *([*row] for row in zip(*columns.values(), strict=True))]


def _interval(limits: tuple[float, float]) -> str:
    low, high = limits
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _seconds(metrics: RunMetrics) -> float:
    return metrics.training_seconds + metrics.evaluate_seconds


def table_of_seeds(
    runs: Sequence[Run],
    compared: Differences | None = None,
    learned_after: Mapping[Run, int | None] | None = None,
) -> Table:
    """One row for all seeds of a setting: mean, spread, the interval over people, the difference.

    Args:
        learned_after: for the mean of `curves.characters_until_half`, over the seeds that have one.
    """
    settings = shown_settings(runs)
    difference_of = compared.of if compared else {}
    extra = [DIFFERENCE] if difference_of else []
    means = ["mean bits", *(["until 50%"] if learned_after is not None else [])]
    columns = ["seeds", "dev mean", "deviation", INTERVAL, *extra, "correct", *means, "majority"]
    table = [[*(setting.heading for setting in settings), *columns]]
    for seeds in group_by_settings(without_copies(runs), settings).values():
        shares = exact_matches(seeds)
        right, total, _ = counts(seeds)
        spread = f"{100 * stdev(shares):.1f}" if len(shares) > 1 else ""
        majority = {f"{run.metrics.baseline.exact_match:.1%}" for run in seeds if run.metrics}
        numbers = [
            f"{mean_exact_match(seeds):.1%}",
            spread,
            _interval(interval_over_people(seeds)),
            *(str(difference_of.get(seeds[0], "")) for _ in extra),
            f"{right}/{total}",
            mean_text([run.metrics.bits if run.metrics else None for run in seeds]),
        ]
        if learned_after is not None:
            reached = [learned_after.get(run) for run in seeds]
            numbers.append(mean_text([None if count is None else count / 1e6 for count in reached]))
        values = [setting.display(seeds[0]) for setting in settings]
        table.append([*values, str(len(shares)), *numbers, " or ".join(sorted(majority))])
    if len({row[-1] for row in table[1:]}) < 2:
        table = [row[:-1] for row in table]
    return table


def notes(runs: Sequence[Run]) -> list[str]:
    """Sentences that belong below the tables: states, what all runs share, and what varies together."""
    lines = [f"{state_counts(runs)}."]
    if common := common_settings(runs):
        lines.append(f"All runs: {', '.join(common)}.")
    answers = {(run.metrics.majority_answer, run.metrics.baseline) for run in runs if run.metrics}
    if len(answers) == 1:
        [(answer, score)] = answers
        lines.append(
            f"Always answering {plain(answer)} is right for {score.correct} of {score.total}"
            f" ({score.exact_match:.1%})."
        )
    for setting in shown_settings(runs):
        if len(setting.keys) > 1:
            lines.append(f"{setting.heading}: these vary together: {', '.join(setting.names)}.")
    if copies := sum(run.metrics is not None for run in runs) - len(without_copies(runs)):
        lines.append(
            f"Left out of means, as copies with the settings, seed and weights of another: {copies}."
        )
    return lines


def interval_note(runs: Sequence[Run]) -> list[str]:
    """What the intervals are over, if a run has one."""
    if not any(run.metrics for run in runs):
        return []
    spread = ", which all seeds answer; they leave out how much seeds differ" if seed_varies(runs) else ""
    return [f"Intervals are 95 % (Wilson) over the names of dev{spread}."]


def difference_note(runs: Sequence[Run], compared: Differences) -> list[str]:
    """What the differences are from, if there are some."""
    if not compared.of:
        return []
    seeds = " and over seeds where a setting has several" if seed_varies(runs) else ""
    return [
        f"{DIFFERENCE}: dev less that of {plain(compared.reference)}, in points, ± two standard errors,"
        f" person by person{seeds}."
    ]


def naming_note(runs: Sequence[Run]) -> str:
    """How to find the directory of a run that a table names without its path."""
    return f"A run is named by the end of its directory: {plain(runs[0].path.parent)}/*{runs[0].name}"


def state_counts(runs: Sequence[Run]) -> str:
    """How many runs are in which state."""
    return ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).items())


def failures(runs: Sequence[Run]) -> list[str]:
    """The error of each run that failed or cannot be read."""
    return [f"{plain(run.path)} {run.state}: {run.reason}" for run in runs if run.has_error]


def as_csv(runs: Sequence[Run], compared: Differences | None = None) -> str:
    """One row per run, with unrounded numbers."""
    return csv_of(records(runs, compared))


def as_json(runs: Sequence[Run], compared: Differences | None = None) -> str:
    """A list with one object per run."""
    return json.dumps(records(runs, compared), indent=2) + "\n"


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """CSV of rows that have the same keys."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def records(runs: Sequence[Run], compared: Differences | None = None) -> list[dict[str, Any]]:
    """The runs for a script; None for what a run has not reached.

    Args:
        compared: the differences of their settings, which all seeds of a setting share.
    """
    difference_of = compared.of if compared else {}
    varying = {
        key: name
        for setting in varying_settings(runs)
        for key, name in zip(setting.keys, setting.names, strict=True)
        if key not in GROUPS
    }
    return [_record(run, {**NAMES, **varying}, difference_of.get(run)) for run in runs]


def _record(run: Run, names: dict[str, str], difference: Difference | None) -> dict[str, Any]:
    metrics = run.metrics
    return {
        **{name: _typed(run, key) for key, name in names.items()},
        "seed": run.config.get("seed"),
        "parameters": metrics and metrics.parameters,
        "correct": metrics and metrics.dev.correct,
        "total": metrics and metrics.dev.total,
        "exact_match": metrics and metrics.dev.exact_match,
        "low": metrics and metrics.dev.interval[0],
        "high": metrics and metrics.dev.interval[1],
        "difference": difference and difference.mean,
        "difference_standard_error": difference and difference.standard_error,
        "holdout_exact_match": metrics and metrics.holdout and metrics.holdout.exact_match,
        "majority": metrics and metrics.baseline.exact_match,
        "bits": metrics and metrics.bits,
        "loss": metrics and metrics.loss,
        "characters": metrics and metrics.characters,
        "seconds": metrics and _seconds(metrics),
        "state": run.state,
        "reason": run.reason,
        "run": plain(run.path),
    }


def _typed(run: Run, key: str) -> Any:
    """A number or a truth value as it is, other values as text, and None for what the run does not have."""
    text = run.value(key)
    value = run.config.get(key)
    return value if text and isinstance(value, bool | int | float | None) else text or None
