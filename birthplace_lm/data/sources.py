"""Example sources: where the rows of an epoch come from, and wrappers that change them."""

from typing import Protocol

import torch

from birthplace_lm.data.randomness import randint_below
from birthplace_lm.data.sequences import MAX_SHIFT, PAD_OFFSET, PieceTable


class ExampleSource(Protocol):
    """Makes the rows of an epoch; every epoch has the same number of rows."""

    def __len__(self) -> int: ...

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch; the generator is the only source of randomness."""
        ...


class Subsample:
    """A random subset of another source, of `count` rows, sampled again in every epoch."""

    def __init__(self, source: ExampleSource, count: int) -> None:
        self.source = source
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, generator: torch.Generator) -> PieceTable:
        rows = self.source.rows(generator)
        return rows[torch.randperm(len(rows), generator=generator)[: self.count]]


class LeftPadded:
    """The rows of another source, each shifted to the right by a random number of PADs.

    A name is at the beginning of a document, but after several characters of a question. A model with learned
    positions treats the two as different, and cannot answer about people it has only read about. Shifted
    documents remove that difference.

    Args:
        source: whose rows to shift.
        min_shift, max_shift: number of PADs, 0 to 64, limited by the room that the row leaves in the block.
        block_size: characters of the longest row.

    Raises:
        ValueError: `min_shift` or `max_shift` is out of range.
    """

    def __init__(self, source: ExampleSource, min_shift: int, max_shift: int, block_size: int) -> None:
        if not 0 <= min_shift <= max_shift <= MAX_SHIFT:
            raise ValueError(
                f"max_shift={max_shift}: must be from min_shift={min_shift} to {MAX_SHIFT},"
                " and min_shift must not be negative"
            )
        self.source = source
        self.min_shift = min_shift
        self.max_shift = max_shift
        self.block_size = block_size

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, generator: torch.Generator) -> PieceTable:
        rows = self.source.rows(generator)
        room = (self.block_size - rows.totals).clamp(min=0)
        low, high = room.clamp(max=self.min_shift), room.clamp(max=self.max_shift)
        pads = (low + randint_below(high - low + 1, generator))[:, None]
        return PieceTable(
            starts=torch.cat((torch.full_like(pads, PAD_OFFSET), rows.starts), dim=1),
            lengths=torch.cat((pads, rows.lengths), dim=1),
            loss_start=rows.loss_start.clamp(min=1) + pads[:, 0],
        )
