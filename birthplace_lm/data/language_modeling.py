"""Language modeling: every line as it stands, with loss on each next character."""

import torch
from torch import Tensor

from birthplace_lm.data.randomness import randint_below
from birthplace_lm.data.sequences import PieceTable


class LanguageModeling:
    """One row per document: all of it, or a random window of `block_size` characters of a longer one.

    With a space written as _ at an end, the document "Ada Bo. Born in Rome ." becomes

        inputs      Ada Bo. Born in Rome_
        targets     da Bo. Born in Rome .      (loss on all of them)

    Args:
        documents: (N, 2) start and length of every document in the text.
        block_size: characters of the longest row.
    """

    def __init__(self, documents: Tensor, block_size: int) -> None:
        self.block_size = block_size
        self.starts, lengths = documents.unbind(1)
        self.lengths = lengths.clamp(max=block_size)
        self.rest = lengths - self.lengths

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch; the windows are random."""
        starts = self.starts + randint_below(self.rest + 1, generator)
        return PieceTable(starts[:, None], self.lengths[:, None], torch.zeros_like(starts))
