"""Exact match as the course scores it."""

from collections.abc import Sequence

import pytest

from birthplace_lm.inference.scores import score

PREDICTIONS = ["Paris", "paris", "Paris.", " Paris", "Paris ", "", "", "Rome", "Zürich", "Zürich"]
PLACES = ["Paris", "Paris", "Paris", "Paris", "Paris", "", "Rome", "Paris", "Zürich", "Zu\u0308rich"]
CORRECT = 3  # case, punctuation, blanks and code points all count


def test_to_the_letter() -> None:
    assert score(PREDICTIONS, PLACES).to_dict() == {"correct": CORRECT, "total": 10, "exact_match": 0.3}


def test_the_courses_figure() -> None:
    places = [f"place {i}" for i in range(500)]
    predictions = [place if i < 153 else "London" for i, place in enumerate(places)]
    assert score(predictions, places).exact_match == 0.306


def test_nothing_to_score_is_zero() -> None:
    assert score([], []).to_dict() == {"correct": 0, "total": 0, "exact_match": 0.0}


@pytest.mark.parametrize("predictions", [["a"], ["a", "b", "c"]])
def test_a_missing_prediction_is_no_silent_shift(predictions: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        score(predictions, ["a", "b"])
