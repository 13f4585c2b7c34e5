"""Span corruption: `prefix MASK suffix MASK masked`, so that a left-to-right model learns to fill gaps."""

import torch
from torch import Tensor

from birthplace_lm.data.rows import MASK_AT, MOST_PADS, PAD_AT, Rows
from birthplace_lm.error import InputError
from birthplace_lm.data.span import SpanChooser, below


class SpanCorruption:
    """One row per document, with a span drawn anew in every epoch.

    With MASK written as _, the document "Ada Bo. Ada Bo was born in Rome ." and the span "Rome" become

        characters  Ada Bo. Ada Bo was born in _ ._Rome
        inputs      Ada Bo. Ada Bo was born in _ ._Rom
        targets     da Bo. Ada Bo was born in _ ._Rome      (loss on all of them)

    Args:
        documents: (N, 2) start and length of every document in the text.
        spans: draws what is masked and what is shown.
        block_size: characters of the longest row.
        closing: end with one more MASK, as answers do.
        loss_on: "all" characters, or only what follows the second MASK: the masked "span".
        most_leading: up to so many PADs stand in front of the row, a new number each time, so that what is
            learned about a name does not hang on the place in the sequence where the name stood.
    """

    def __init__(self, documents: Tensor, spans: SpanChooser, block_size: int, closing: bool, loss_on: str, most_leading: int) -> None:
        if loss_on not in ("all", "span"):
            raise InputError(f"stages.pretrain.data.loss_on={loss_on}: must be all or span")
        if not 0 <= most_leading <= MOST_PADS:
            raise InputError(f"stages.pretrain.data.most_leading={most_leading}: must be from 0 to {MOST_PADS}")
        self.first = documents[:, 0]
        self.spans = spans
        self.block_size = block_size
        self.closing = closing
        self.loss_on = loss_on
        self.most_leading = most_leading

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, generator: torch.Generator) -> Rows:
        """The rows of one epoch."""
        head, left, start, end, right = self.spans.draw(generator)
        zero = torch.zeros_like(start)
        mask, one = torch.full_like(start, MASK_AT) - self.first, torch.ones_like(start)
        room = (self.block_size - 3 - head - (right - left)).clamp(0, self.most_leading)
        lead = below(room + 1, generator)
        starts = (zero + PAD_AT - self.first, zero, left, mask, end, mask, start, mask)
        lengths = (lead, head, start - left, one, right - end, one, end - start, one * int(self.closing))
        pieces = torch.stack(lengths, dim=1)
        return Rows(
            starts=torch.stack(starts, dim=1) + self.first[:, None],
            lengths=pieces,
            loss_from=pieces[:, :6].sum(1) if self.loss_on == "span" else lead + 1,
        )
