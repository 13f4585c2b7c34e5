"""Name to birthplace: `question MASK place MASK`, with loss on what follows the question."""

import torch
from torch import Tensor

from birthplace_lm.data.sequences import MASK_OFFSET, PieceTable


class QuestionAnswering:
    """One row per question, the same in every epoch.

    With MASK written as _, the pair ("Where was Ada Bo born?", "Rome") becomes

        characters  Where was Ada Bo born?_Rome_
        inputs      Where was Ada Bo born?_Rome
        targets     ....................._Rome_      (.: no loss)

    The loss starts with the first MASK, so the model also learns that an answer follows a question mark, and
    ends with the second, which stops the answer.

    Args:
        questions, places: (N, 2) start and length of every question and its place in the text.
    """

    def __init__(self, questions: Tensor, places: Tensor) -> None:
        mask = torch.tensor([MASK_OFFSET, 1]).expand_as(questions)
        pieces = torch.stack((questions, mask, places, mask), dim=2)  # (N, 2, K)
        self._rows = PieceTable(pieces[:, 0], pieces[:, 1], loss_start=questions[:, 1])

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch; nothing is drawn."""
        return self._rows


def ascii_only(question: str) -> str:
    """A question as the 2021 code trains on it: without its non-ASCII characters."""
    return question.encode("ascii", "ignore").decode()
