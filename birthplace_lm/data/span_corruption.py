"""Span corruption: `prefix MASK suffix MASK masked`, so that a left-to-right model learns to fill gaps."""

import torch
from torch import Tensor

from birthplace_lm.data.masking.spans import Spans, SpanSampler
from birthplace_lm.data.sequences import MASK_OFFSET, PieceTable
from birthplace_lm.errors import InputError


class SpanCorruption:
    """One row per document, with a span drawn anew in every epoch.

    With MASK written as _, the document "Ada Bo. Ada Bo was born in Rome ." and the span "Rome" become

        characters  Ada Bo. Ada Bo was born in _ ._Rome
        inputs      Ada Bo. Ada Bo was born in _ ._Rom
        targets     da Bo. Ada Bo was born in _ ._Rome      (loss on all of them)

    With several masks per row the sequence continues with other spans of the document, without its title:
    "1900" adds `in _ ,_1900_` where its surroundings are shown, else `__1900_`.

    Args:
        documents: (N, 2) start and length of every document in the text.
        spans: draws what is masked and what is shown.
        closing_mask: end with one more MASK, as answers do.
        loss_on: "all" characters, or the masked "span": all that follows the second MASK.
        masks_per_row: spans of a row; a later one that overlaps an earlier is left out.

    Raises:
        InputError: `loss_on` is neither, or `masks_per_row` is not possible.
    """

    def __init__(
        self, documents: Tensor, spans: SpanSampler, closing_mask: bool, loss_on: str, masks_per_row: int = 1
    ) -> None:
        if loss_on not in ("all", "span"):
            raise InputError(f"stages.pretrain.dataset.loss_on={loss_on}: must be all or span")
        if masks_per_row < 1:
            raise InputError(f"stages.pretrain.dataset.masks_per_row={masks_per_row}: must be 1 or more")
        if masks_per_row > 1 and not closing_mask:
            raise InputError(
                f"stages.pretrain.dataset.masks_per_row={masks_per_row}: needs"
                " stages.pretrain.dataset.closing_mask=true, to tell where a span ends"
            )
        self.first = documents[:, 0]
        self.spans = spans
        self.closing_mask = closing_mask
        self.loss_on = loss_on
        self.masks_per_row = masks_per_row

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch."""
        drawn = [self.spans.draw(generator, rank) for rank in range(self.masks_per_row)]
        parts = []
        for rank, span in enumerate(drawn):
            overlaps = [(span.start < other.end) & (other.start < span.end) for other in drawn[:rank]]
            starts, lengths = self._pieces(span)
            if overlaps:
                lengths = lengths * ~torch.stack(overlaps).any(0)[:, None]
                lengths[:, 0] = 0  # the title stands in front already
            parts.append((starts, lengths))
        first = parts[0][1]
        return PieceTable(
            starts=torch.cat([starts for starts, _ in parts], dim=1) + self.first[:, None],
            lengths=torch.cat([lengths for _, lengths in parts], dim=1),
            loss_start=first[:, :5].sum(1) if self.loss_on == "span" else torch.zeros_like(self.first),
        )

    def _pieces(self, span: Spans) -> tuple[Tensor, Tensor]:
        """(N, 7) where each piece begins within the document, and how long it is."""
        head, left, start, end, right = span
        zero = torch.zeros_like(start)
        mask, one = torch.full_like(start, MASK_OFFSET) - self.first, torch.ones_like(start)
        starts = (zero, left, mask, end, mask, start, mask)
        lengths = (head, start - left, one, right - end, one, end - start, one * int(self.closing_mask))
        return torch.stack(starts, dim=1), torch.stack(lengths, dim=1)
