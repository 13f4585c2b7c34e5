"""Span corruption: `prefix MASK suffix MASK masked`, so that a left-to-right model learns to fill gaps."""

import torch
from torch import Tensor

from birthplace_lm.data.masking.spans import Spans, SpanSampler
from birthplace_lm.data.sequences import MASK_OFFSET, PieceTable
from birthplace_lm.errors import InputError


class SpanCorruption:
    """One row per document, with a new random span in every epoch.

    With MASK written as _, the document "Ada Bo. Ada Bo was born in Rome ." and the span "Rome" become

        characters  Ada Bo. Ada Bo was born in _ ._Rome
        inputs      Ada Bo. Ada Bo was born in _ ._Rom
        targets     da Bo. Ada Bo was born in _ ._Rome      (loss on all of them)

    With several masks per row the sequence continues with other spans of the document, without its title:
    "1900" adds `in _ ,_1900_` where its context is shown, otherwise `__1900_`.

    Args:
        documents: (N, 2) start and length of every document in the text.
        spans: samples what is masked and what is shown.
        closing_mask: end the row with one more MASK, as answers do.
        loss_on: "all" characters, or the masked "span": everything after the second MASK.
        block_size: the most characters that a span with its title, context and MASKs may take.
        masks_per_row: spans of a row; a later one that overlaps an earlier one is left out.

    Raises:
        ValueError: `loss_on` or `masks_per_row` is not possible.
    """

    def __init__(
        self,
        documents: Tensor,
        spans: SpanSampler,
        closing_mask: bool,
        loss_on: str,
        block_size: int,
        masks_per_row: int = 1,
    ) -> None:
        if loss_on not in ("all", "span"):
            raise ValueError(f"loss_on={loss_on}: must be all or span")
        if masks_per_row < 1:
            raise ValueError(f"masks_per_row={masks_per_row}: must be 1 or more")
        if masks_per_row > 1 and not closing_mask:
            raise ValueError(
                f"masks_per_row={masks_per_row}: needs closing_mask=true, which marks the end of a span"
            )
        self.document_starts, self.document_lengths = documents.unbind(1)
        self.spans = spans
        self.closing_mask = closing_mask
        self.loss_on = loss_on
        self.block_size = block_size
        self.masks_per_row = masks_per_row

    def __len__(self) -> int:
        return len(self.document_starts)

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch.

        Raises:
            InputError: the sampler breaks the promise of `Spans`.
        """
        spans = [self.spans.sample(generator, index) for index in range(self.masks_per_row)]
        for span in spans:
            self._check(span)
        tables = []
        for index, span in enumerate(spans):
            overlaps = [(span.start < other.end) & (other.start < span.end) for other in spans[:index]]
            starts, lengths = self._pieces(span)
            if overlaps:
                lengths = lengths * ~torch.stack(overlaps).any(0)[:, None]
                lengths[:, 0] = 0  # only the first span of a row has the title in front
            tables.append((starts, lengths))
        first_lengths = tables[0][1]
        return PieceTable(
            starts=torch.cat([starts for starts, _ in tables], dim=1) + self.document_starts[:, None],
            lengths=torch.cat([lengths for _, lengths in tables], dim=1),
            loss_start=(
                first_lengths[:, :5].sum(1)
                if self.loss_on == "span"
                else torch.zeros_like(self.document_starts)
            ),
        )

    def _check(self, span: Spans) -> None:
        self._check_form(span)
        title_end, context_start, start, end, context_end = span
        ordered = (title_end >= 0) & (title_end <= context_start) & (context_start <= start) & (start < end)
        valid = ordered & (end <= context_end) & (context_end <= self.document_lengths)
        if not valid.all():
            number = int((~valid).nonzero()[0])
            raise InputError(
                f"{type(self.spans).__name__}.sample: document {number + 1} of"
                f" {self.document_lengths[number]} characters: {[int(edge[number]) for edge in span]} are not"
                " in order; see birthplace_lm.data.masking.spans.Spans"
            )
        rooms = self.block_size - (title_end + context_end - context_start) - 3
        if rooms.amin() < 0:
            number = int(rooms.argmin())
            raise InputError(
                f"{type(self.spans).__name__}.sample: document {number + 1}:"
                f" {[int(edge[number]) for edge in span]} show {self.block_size - 3 - int(rooms[number])}"
                f" characters, and there is room for {self.block_size - 3} (block_size - 3)"
            )

    def _check_form(self, span: object) -> None:
        edges = span if isinstance(span, tuple) else ()
        shape = self.document_lengths.shape
        if len(edges) != 5 or any(
            not isinstance(edge, Tensor) or edge.dtype != torch.int64 or edge.shape != shape for edge in edges
        ):
            raise InputError(
                f"{type(self.spans).__name__}.sample: must return `Spans`: five int64 tensors with a number"
                f" for each of the {len(self)} documents"
            )

    def _pieces(self, span: Spans) -> tuple[Tensor, Tensor]:
        """(N, 7) start within the document and length of title, prefix, MASK, suffix, MASK, span, MASK."""
        title_end, context_start, start, end, context_end = span
        zero, one = torch.zeros_like(start), torch.ones_like(start)
        mask = torch.full_like(start, MASK_OFFSET) - self.document_starts
        starts = (zero, context_start, mask, end, mask, start, mask)
        prefix, suffix = start - context_start, context_end - end
        lengths = (title_end, prefix, one, suffix, one, end - start, one * int(self.closing_mask))
        return torch.stack(starts, dim=1), torch.stack(lengths, dim=1)
