"""Question answering: `question MASK place MASK`, with loss on everything after the question."""

import torch
from torch import Tensor

from birthplace_lm.data.sequences import MASK_OFFSET, PieceTable


class QuestionAnswering:
    """One row per question, the same in every epoch.

    With MASK written as _, the pair ("Where was Ada Bo born?", "Rome") becomes

        characters  Where was Ada Bo born?_Rome_
        inputs      Where was Ada Bo born?_Rome
        targets     ....................._Rome_      (.: no loss)

    The loss starts at the first MASK, so that the model also learns that an answer follows a question mark.
    It ends at the second, which ends the answer.

    Args:
        questions, places: (N, 2) start and length in the text, of every question and of its place.
    """

    def __init__(self, questions: Tensor, places: Tensor) -> None:
        mask = torch.tensor([MASK_OFFSET, 1]).expand_as(questions)
        pieces = torch.stack((questions, mask, places, mask), dim=2)  # (N, 2, K)
        self._rows = PieceTable(pieces[:, 0], pieces[:, 1], loss_start=questions[:, 1])

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch; nothing is random."""
        return self._rows


def without_non_ascii(question: str) -> str:
    """A question without its non-ASCII characters, as the 2021 code trains on it."""
    return question.encode("ascii", "ignore").decode()
