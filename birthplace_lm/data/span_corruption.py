"""Span corruption: `prefix MASK suffix MASK masked`, so that a left-to-right model learns to fill gaps."""

import torch
from torch import Tensor

from birthplace_lm.data.rows import MASK_AT, Rows
from birthplace_lm.data.span import SpanChooser
from birthplace_lm.error import InputError


class SpanCorruption:
    """One row per document, with a span drawn anew in every epoch.

    With MASK written as _, the document "Ada Bo. Ada Bo was born in Rome ." and the span "Rome" become

        characters  Ada Bo. Ada Bo was born in _ ._Rome
        inputs      Ada Bo. Ada Bo was born in _ ._Rom
        targets     da Bo. Ada Bo was born in _ ._Rome      (loss on all of them)

    Args:
        documents: (N, 2) start and length of every document in the text.
        spans: draws what is masked and what is shown.
        closing: end with one more MASK, as answers do.
        loss_on: "all" characters, or only what follows the second MASK: the masked "span".
    """

    def __init__(self, documents: Tensor, spans: SpanChooser, closing: bool, loss_on: str) -> None:
        if loss_on not in ("all", "span"):
            raise InputError(f"stages.pretrain.data.loss_on={loss_on}: must be all or span")
        self.first = documents[:, 0]
        self.spans = spans
        self.closing = closing
        self.loss_on = loss_on

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, generator: torch.Generator) -> Rows:
        """The rows of one epoch."""
        head, left, start, end, right = self.spans.draw(generator)
        zero = torch.zeros_like(start)
        mask, one = torch.full_like(start, MASK_AT) - self.first, torch.ones_like(start)
        starts = (zero, left, mask, end, mask, start, mask)
        lengths = (head, start - left, one, right - end, one, end - start, one * int(self.closing))
        pieces = torch.stack(lengths, dim=1)
        return Rows(
            starts=torch.stack(starts, dim=1) + self.first[:, None],
            lengths=pieces,
            loss_from=pieces[:, :5].sum(1) if self.loss_on == "span" else zero,
        )
