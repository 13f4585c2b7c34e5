"""Exact match as the course scores it, and the baseline it has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMatch(Metric):
    """Share of predictions that equal the gold place to the letter; case and punctuation count.

    Each example is counted once, whatever the number of processes: give every process its own examples.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], places: Sequence[str]) -> None:
        self.correct += sum(p == gold for p, gold in zip(predictions, places, strict=True))
        self.total += len(places)

    def compute(self) -> Tensor:
        """A fraction in [0, 1]; 0 when there was nothing to score."""
        return self.correct.float() / self.total.clamp(min=1)
