"""Exact match as the course scores it."""

from collections.abc import Sequence

from birthplace_lm.runs.metrics import Score


def score(predictions: Sequence[str], places: Sequence[str]) -> Score:
    """Compare predictions with gold places, to the letter: case and punctuation count."""
    return Score(sum(p == gold for p, gold in zip(predictions, places, strict=True)), len(places))
