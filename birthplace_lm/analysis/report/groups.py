"""Finished runs of equal settings, of which only the seeds differ."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.settings import Setting, varying_settings
from birthplace_lm.runs.metrics import wilson


def group_by_settings(runs: Iterable[Run], settings: Sequence[Setting]) -> dict[tuple[str, ...], list[Run]]:
    """Group the finished runs whose settings have equal values, so that only the seeds differ.

    The group with the best mean comes first.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.metrics:
            groups.setdefault(tuple(run.value(setting.keys[0]) for setting in settings), []).append(run)
    return dict(sorted(groups.items(), key=lambda group: mean_exact_match(group[1]), reverse=True))


def without_copies(runs: Sequence[Run]) -> list[Run]:
    """The finished runs; of those with equal settings, seed and weights one."""
    keys = [key for setting in varying_settings(runs) for key in setting.keys]
    distinct: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run.metrics:
            settings = tuple(run.value(key) for key in keys)
            distinct.setdefault((settings, run.config.get("seed"), run.metrics.weights_sha256), run)
    return [*distinct.values()]


def mean_exact_match(runs: Sequence[Run]) -> float:
    """The mean over finished runs of their exact match on dev."""
    return fmean(exact_matches(runs))


def interval_over_people(runs: Sequence[Run]) -> tuple[float, float]:
    """The 95 % interval of `mean_exact_match`: the seeds of a setting answer the same questions."""
    right, total, seeds = counts(runs)
    return wilson(right / seeds, total / seeds)


def counts(runs: Sequence[Run]) -> tuple[int, int, int]:
    """The right answers and all answers on dev of finished runs, and how many runs these are."""
    scores = [run.dev for run in runs if run.dev]
    return sum(score.correct for score in scores), sum(score.total for score in scores), len(scores)


def exact_matches(runs: Sequence[Run]) -> list[float]:
    """The exact match on dev of the finished runs."""
    return [run.dev.exact_match for run in runs if run.dev]


def mean_text(numbers: Sequence[float | None]) -> str:
    """The mean of those that are not None, and of how many it is if some are."""
    present = [number for number in numbers if number is not None]
    if not present:
        return ""
    share = f" ({len(present)} of {len(numbers)})" if len(present) < len(numbers) else ""
    return f"{fmean(present):.2f}{share}"
