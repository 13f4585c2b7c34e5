"""Exact match as the course scores it, with its confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Correct answers of one run or of several."""

    correct: int
    total: int

    @property
    def exact_match(self) -> float:
        """A fraction in [0, 1]; 0 when there is nothing to score."""
        return self.correct / max(1, self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `exact_match`."""
        z, n, p = 1.959964, self.total, self.exact_match
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    def to_dict(self) -> dict[str, float | int]:
        """As metrics.json holds it."""
        return {"correct": self.correct, "total": self.total, "exact_match": self.exact_match}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.correct}/{self.total} = {self.exact_match:.1%} ({low:.1%} to {high:.1%})"


def score(predictions: Sequence[str], places: Sequence[str]) -> Score:
    """Compare predictions with gold places, to the letter: case and punctuation count."""
    return Score(sum(p == gold for p, gold in zip(predictions, places, strict=True)), len(places))
