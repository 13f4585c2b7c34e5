"""Exact match as the course scores it."""

from collections.abc import Sequence

import pytest
import torch

from birthplace_lm.inference.scores import score
from birthplace_lm.training.metrics import ExactMatch

PREDICTIONS = ["Paris", "paris", "Paris.", " Paris", "Paris ", "", "", "Rome", "Zürich", "Zürich"]
PLACES = ["Paris", "Paris", "Paris", "Paris", "Paris", "", "Rome", "Paris", "Zürich", "Zu\u0308rich"]
RIGHT = 3  # case, punctuation, blanks and code points all count


def test_to_the_letter() -> None:
    assert score(PREDICTIONS, PLACES).to_dict() == {"correct": RIGHT, "total": 10, "exact_match": 0.3}
    metric = ExactMatch()
    assert metric(PREDICTIONS, PLACES).item() == pytest.approx(0.3)


def test_the_courses_figure() -> None:
    places = [f"place {i}" for i in range(500)]
    predictions = [place if i < 153 else "London" for i, place in enumerate(places)]
    assert score(predictions, places).exact_match == 0.306


def test_accumulates_over_batches_of_any_size_and_resets() -> None:
    metric = ExactMatch()
    for batch in (slice(0, 1), slice(1, 8), slice(8, 8), slice(8, 10)):
        metric.update(PREDICTIONS[batch], PLACES[batch])
    assert metric.compute().item() == pytest.approx(score(PREDICTIONS, PLACES).exact_match)
    assert (metric.correct.item(), metric.total.item()) == (RIGHT, 10)
    metric.reset()
    metric.update(["a"], ["b"])
    assert metric.compute() == 0
    metric.reset()
    metric.update(("a", "b"), ("a", "b"))
    assert metric.compute() == 1


def test_forward_scores_the_batch_alone() -> None:
    metric = ExactMatch()
    assert metric(["a"], ["a"]) == 1
    assert metric(["a"], ["b"]) == 0
    assert metric.compute() == 0.5


def test_processes_add_up() -> None:
    """What torchmetrics does between processes: counts are summed, not fractions averaged."""
    parts = [ExactMatch(), ExactMatch()]
    parts[0].update(["a"], ["a"])
    parts[1].update(["a", "b", "c"], ["x", "y", "z"])
    whole = ExactMatch()
    for name, reduction in whole._reductions.items():
        assert callable(reduction)
        setattr(whole, name, reduction(torch.stack([getattr(part, name) for part in parts])))
    assert (int(whole.correct), int(whole.total)) == (1, 4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_to_score_is_zero() -> None:
    assert score([], []).to_dict() == {"correct": 0, "total": 0, "exact_match": 0.0}
    assert ExactMatch().compute() == 0


@pytest.mark.parametrize("predictions", [["a"], ["a", "b", "c"]])
def test_a_missing_prediction_is_no_silent_shift(predictions: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        score(predictions, ["a", "b"])
    with pytest.raises(ValueError, match="zip"):
        ExactMatch().update(predictions, ["a", "b"])
