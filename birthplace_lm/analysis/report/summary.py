"""Summaries of runs: tables of runs and of seeds, CSV, JSON."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.tables import Table, plain
from birthplace_lm.runs.identity import EXCLUDED_FROM_HASH, TRAINER_EXCLUDED_FROM_HASH
from birthplace_lm.runs.metrics import RunMetrics, Score

NAMES = {"labels.attention": "attention", "labels.pretrain": "pretraining", "labels.data": "data"}
IGNORED_KEYS = {*EXCLUDED_FROM_HASH, *(f"trainer.{key}" for key in TRAINER_EXCLUDED_FROM_HASH), "seed"}
INTERVAL_NOTE = "Intervals are 95 % (Wilson), from the number of names alone; seeds differ by more."


def varying_keys(runs: Sequence[Run]) -> dict[str, str]:
    """The keys in which runs differ, with a short name for each.

    Attention, pretraining and data come first; then each key whose values do not follow from these.
    """
    runs = [run for run in runs if run.config]
    names = [tuple(run.display(name) for name in NAMES) for run in runs]
    columns: list[str] = []
    patterns = set()
    keys = {key for run in runs for key in run.config if key.partition(".")[0] not in IGNORED_KEYS}
    for key in sorted(keys - IGNORED_KEYS - set(NAMES)):
        values = [run.display(key) for run in runs]
        pattern = tuple(values.index(value) for value in values)
        follows = len({*zip(names, values, strict=True)}) == len({*names})
        if not follows and pattern not in patterns:
            patterns.add(pattern)
            columns.append(key)
    return {**NAMES, **{key: _short(key, columns) for key in columns}}


def _short(key: str, keys: Sequence[str]) -> str:
    *_, parent, last = ("", *key.removesuffix("._target_").split("."))
    clash = sum(other.endswith(f".{last}") for other in keys) > 1
    return f"{parent}.{last}" if clash or last == "enabled" else last


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """A label for each run, equal for all seeds: names that differ and settings unlike those of most runs."""
    label_parts: dict[Run, list[str]] = {run: [] for run in runs}
    for key, name in varying_keys(runs).items():
        (usual, count), *_ = Counter(run.display(key) for run in runs).most_common(1)
        for run, parts in label_parts.items():
            if count < len(runs) and (key in NAMES or run.display(key) != usual):
                parts.append(run.display(key) if key in NAMES else f"{name}={run.display(key)}")
    default = ("labels.attention", "labels.pretrain")
    return {
        run: ", ".join(parts or [run.display(key) for key in default]) for run, parts in label_parts.items()
    }


def table_of_runs(runs: Sequence[Run]) -> Table:
    """One row per run."""
    keys = varying_keys(runs)
    cells: dict[str, Callable[[RunMetrics], str]] = {
        "parameters": lambda metrics: f"{metrics.parameters:,}",
        "dev exact match": lambda metrics: str(metrics.dev),
        "held-out exact match": lambda metrics: str(metrics.holdout or ""),
        "majority": lambda metrics: f"{metrics.baseline.exact_match:.1%}",
        "loss": lambda metrics: "" if metrics.loss is None else f"{metrics.loss:.3f}",
        "million characters": lambda metrics: f"{metrics.characters / 1e6:.2f}",
        "minutes": lambda metrics: f"{_seconds(metrics) / 60:.1f}",
    }
    if not any(run.metrics and run.metrics.holdout for run in runs):
        del cells["held-out exact match"]
    table = [[*keys.values(), "seed", *cells, "state", "run directory"]]
    for run in runs:
        numbers = [cell(run.metrics) if run.metrics else "" for cell in cells.values()]
        state = run.state if run.has_error or not run.reason else f"{run.state}, {run.reason}"
        settings = [run.display(key) for key in (*keys, "seed")]
        table.append([*settings, *numbers, state, plain(run.path)])
    return table


def _seconds(metrics: RunMetrics) -> float:
    return metrics.training_seconds + metrics.evaluate_seconds


def group_by_settings(runs: Iterable[Run], keys: Iterable[str]) -> dict[tuple[str, ...], list[Run]]:
    """Group the finished runs whose settings have equal values, so that only the seeds differ."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.metrics:
            groups.setdefault(tuple(run.display(key) for key in keys), []).append(run)
    return groups


def table_of_seeds(runs: Sequence[Run]) -> Table:
    """One row for all seeds of a setting: mean, spread, and the interval of all answers together."""
    keys = varying_keys(runs)
    columns = ["seeds", "dev exact match", "standard deviation", "all seeds together", "majority"]
    table = [[*keys.values(), *columns]]
    for settings, seeds in group_by_settings(runs, keys).items():
        metrics = [run.metrics for run in seeds if run.metrics]
        scores = [run.dev for run in metrics]
        shares = [score.exact_match for score in scores]
        total = Score(sum(score.correct for score in scores), sum(score.total for score in scores))
        spread = f"{100 * stdev(shares):.1f} points" if len(shares) > 1 else ""
        majority = f"{metrics[0].baseline.exact_match:.1%}"
        table.append([*settings, str(len(shares)), f"{fmean(shares):.1%}", spread, str(total), majority])
    return table


def state_counts(runs: Sequence[Run]) -> str:
    """How many runs are in which state."""
    return ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).items())


def failures(runs: Sequence[Run]) -> list[str]:
    """The error of each run that failed or cannot be read."""
    return [f"{plain(run.path)} {run.state}: {run.reason}" for run in runs if run.has_error]


def as_csv(runs: Sequence[Run]) -> str:
    """One row per run, with unrounded numbers."""
    keys = varying_keys(runs)
    records = [to_record(run, keys) for run in runs]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*records[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """A list with one object per run."""
    keys = varying_keys(runs)
    return json.dumps([to_record(run, keys) for run in runs], indent=2) + "\n"


def to_record(run: Run, keys: Mapping[str, str]) -> dict[str, Any]:
    """One run for a script; None for what it has not reached."""
    metrics = run.metrics
    return {
        **{name: run.display(key) for key, name in keys.items()},
        "seed": run.config.get("seed"),
        "parameters": metrics and metrics.parameters,
        "correct": metrics and metrics.dev.correct,
        "total": metrics and metrics.dev.total,
        "exact_match": metrics and metrics.dev.exact_match,
        "low": metrics and metrics.dev.interval[0],
        "high": metrics and metrics.dev.interval[1],
        "holdout_exact_match": metrics and metrics.holdout and metrics.holdout.exact_match,
        "majority": metrics and metrics.baseline.exact_match,
        "loss": metrics and metrics.loss,
        "characters": metrics and metrics.characters,
        "seconds": metrics and _seconds(metrics),
        "state": run.state,
        "reason": run.reason,
        "run": plain(run.path),
    }
