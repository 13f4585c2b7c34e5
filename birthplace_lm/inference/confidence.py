"""How well a confidence tells right answers from wrong ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Sequence[float], Sequence[bool]], float]
BINS = 15  # of equal mass, for the calibration error
Z = 1.959964  # of a two-sided 95 % interval


def auroc(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """P(score of a right answer > score of a wrong one), ties counted half; NaN without one of the two.

    >>> auroc([3, 2, 2, 1], [True, True, False, False])
    0.875
    """
    values, right = np.asarray(scores, float), np.asarray(correct, bool)
    wins = values[right][:, None] - values[~right][None]
    return float(np.mean((wins > 0) + 0.5 * (wins == 0))) if wins.size else math.nan


def brier(probabilities: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared difference of probability and outcome."""
    return float(np.mean((np.asarray(probabilities, float) - np.asarray(correct, float)) ** 2))


def calibration_error(probabilities: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins of equally many answers."""
    order = np.argsort(np.asarray(probabilities, float), kind="stable")
    p, right = np.asarray(probabilities, float)[order], np.asarray(correct, float)[order]
    parts = [
        (a, b) for a, b in zip(np.array_split(p, bins), np.array_split(right, bins), strict=True) if len(a)
    ]
    return float(sum(len(a) * abs(b.mean() - a.mean()) for a, b in parts) / len(p))


def bootstrap(
    statistic: Statistic,
    scores: Sequence[float],
    correct: Sequence[bool],
    draws: int = 1000,
    seed: int = 0,
    answers_per_person: int = 1,
) -> tuple[float, float]:
    """The 95 % interval of a statistic over people drawn with replacement.

    Args:
        answers_per_person: a person is drawn with so many answers, which stand next to each other.
    """
    values, right = np.asarray(scores, float), np.asarray(correct, bool)
    generator = np.random.default_rng(seed)
    people, together = len(values) // answers_per_person, np.arange(answers_per_person)
    drawn = [
        (generator.integers(people, size=people)[:, None] * answers_per_person + together).ravel()
        for _ in range(draws)
    ]
    results = [statistic(values[index].tolist(), right[index].tolist()) for index in drawn]
    low, high = np.nanpercentile(results, [2.5, 97.5]) if not np.all(np.isnan(results)) else (math.nan,) * 2
    return float(low), float(high)


def risk_coverage(scores: Sequence[float], correct: Sequence[bool]) -> Floats:
    """Share of wrong answers among the k most confident ones, for k = 1 ... N.

    Answers of equal confidence are in no order: each of them counts with the mean of its group.
    """
    values, wrong = np.asarray(scores, float), 1 - np.asarray(correct, float)
    expected = np.empty(len(values))
    for value in np.unique(values):
        group = values == value
        expected[group] = wrong[group].mean()
    order = np.argsort(-values, kind="stable")
    return np.cumsum(expected[order]) / np.arange(1, len(values) + 1)


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


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


def choose_threshold(scores: Sequence[float], correct: Sequence[bool], precision: float) -> Threshold:
    """The threshold of the largest coverage whose precision is reached with 95 % confidence.

    Reached means that the lower Wilson bound of the share of right answers is at least `precision`.
    """
    values, right = np.asarray(scores, float), np.asarray(correct, bool)
    best = Threshold(math.inf, math.nan, 0.0, len(values))
    for score in np.unique(values):
        answered = values >= score
        count, hits = int(answered.sum()), int(right[answered].sum())
        if wilson(hits, count)[0] >= precision and count / len(values) > best.coverage:
            best = Threshold(float(score), hits / count, count / len(values), len(values))
    return best
