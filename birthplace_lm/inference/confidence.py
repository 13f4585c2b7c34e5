"""How well a confidence tells right answers from wrong ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from birthplace_lm.runs.metrics import wilson

Floats = NDArray[np.float64]
Outcome = TypeVar("Outcome", bool, float)
BINS = 15  # of equal mass, for the calibration error
COVERAGES = 10  # equal steps, of which a threshold is chosen
Z_THRESHOLD = NormalDist().inv_cdf(1 - 0.05 / COVERAGES)  # one-sided, 5 % for all together (Bonferroni)


def auroc(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """P(score of a right answer > score of a wrong one), ties counted half; NaN without one of the two.

    >>> auroc([3, 2, 2, 1], [True, True, False, False])
    0.875
    """
    right = np.asarray(correct, bool)
    _, group, sizes = np.unique(np.asarray(scores, float), return_inverse=True, return_counts=True)
    ranks = (sizes.cumsum() - (sizes - 1) / 2)[group]  # from 1; those of equal scores are their mean
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if n_right == 0 or n_wrong == 0:
        return math.nan
    return float((ranks[right].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


def brier(probabilities: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared difference of probability and outcome."""
    return float(np.mean((np.asarray(probabilities, float) - np.asarray(correct, float)) ** 2))


def calibration_error(probabilities: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins of equally many answers.

    Answers of equal probability are in no order: each counts with the mean of its group.
    """
    order = np.argsort(np.asarray(probabilities, float), kind="stable")
    p = np.asarray(probabilities, float)[order]
    right = _mean_of_equals(p, np.asarray(correct, float)[order])
    parts = [
        (a, b) for a, b in zip(np.array_split(p, bins), np.array_split(right, bins), strict=True) if len(a)
    ]
    return float(sum(len(a) * abs(b.mean() - a.mean()) for a, b in parts) / len(p))


def bootstrap(
    statistic: Callable[[Sequence[float], Sequence[Outcome]], float],
    scores: Sequence[float],
    outcomes: Sequence[Outcome],
    draws: int = 1000,
    seed: int = 0,
    answers_per_person: int = 1,
    biased: bool = False,
) -> tuple[float, float]:
    """The 95 % interval of a statistic over people drawn with replacement.

    Args:
        scores, outcomes: the arguments of the statistic, such as the confidence of each answer and whether it
            is right.
        answers_per_person: a person is drawn with so many answers, which stand next to each other.
        biased: drawing raises the statistic, as it does a calibration error. The interval is then mirrored at
            the statistic of the data (basic bootstrap), and begins at 0 at the least.
    """
    first, second = np.asarray(scores, float), np.asarray(outcomes)
    generator = np.random.default_rng(seed)
    people, together = len(first) // answers_per_person, np.arange(answers_per_person)
    drawn = [
        (generator.integers(people, size=people)[:, None] * answers_per_person + together).ravel()
        for _ in range(draws)
    ]
    results = [statistic(first[index].tolist(), second[index].tolist()) for index in drawn]
    low, high = np.nanpercentile(results, [2.5, 97.5]) if not np.all(np.isnan(results)) else (math.nan,) * 2
    if biased:
        middle = statistic(scores, outcomes)
        low, high = max(0.0, 2 * middle - high), max(0.0, 2 * middle - low)
    return float(low), float(high)


def _mean_of_equals(values: Floats, outcomes: Floats) -> Floats:
    """Each outcome replaced by the mean of those that have the same value."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = np.bincount(group, outcomes) / sizes
    return means[group]


def risk_coverage(scores: Sequence[float], correct: Sequence[bool]) -> Floats:
    """Share of wrong answers among the k most confident ones, for k = 1 ... N.

    Answers of equal confidence are in no order: each of them counts with the mean of its group.
    """
    values = np.asarray(scores, float)
    expected = _mean_of_equals(values, 1 - np.asarray(correct, float))
    order = np.argsort(-values, kind="stable")
    return np.cumsum(expected[order]) / np.arange(1, len(values) + 1)


@dataclass(frozen=True)
class Threshold:
    """From which confidence on an answer is given.

    Attributes:
        score: the least confidence; infinity if no threshold reaches the precision.
        precision, coverage: on the rows by which it was chosen.
        rows: how many these were.
    """

    score: float
    precision: float
    coverage: float
    rows: int


def choose_threshold(
    scores: Sequence[float], correct: Sequence[bool], precision: float, answers_per_person: int = 1
) -> Threshold:
    """The threshold of the largest coverage whose precision is reached with 95 % confidence.

    Reached means that a lower Wilson bound of the share of right answers is at least `precision`. Only
    `COVERAGES` thresholds are tested: quantiles of the scores, chosen without looking at `correct`. The bound
    has a Bonferroni correction, because one of several thresholds could pass by chance.

    Args:
        scores, correct: confidence of each answer, and whether it is right.
        precision: required share of right answers, in [0, 1].
        answers_per_person: number of answers per person; the bound is over people.
    """
    values, right = np.asarray(scores, float), np.asarray(correct, bool)
    for lowest, *_ in (part for part in np.array_split(np.sort(values), COVERAGES) if len(part)):
        answered = values >= lowest
        count, hits = int(answered.sum()), int(right[answered].sum())
        bound, _ = wilson(hits / answers_per_person, count / answers_per_person, Z_THRESHOLD)
        if bound >= precision:
            return Threshold(float(lowest), hits / count, count / len(values), len(values))
    return Threshold(math.inf, math.nan, 0.0, len(values))
