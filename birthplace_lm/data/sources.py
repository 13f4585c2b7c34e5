"""Where the rows of an epoch come from, and what can be done to any of them."""

from typing import Protocol

import torch

from birthplace_lm.data.randomness import randint_below
from birthplace_lm.data.sequences import MAX_SHIFT, PAD_OFFSET, PieceTable
from birthplace_lm.errors import InputError


class ExampleSource(Protocol):
    """Makes the rows of an epoch; always as many."""

    def __len__(self) -> int: ...

    def rows(self, generator: torch.Generator) -> PieceTable:
        """The rows of one epoch; what is random about them comes from the generator."""
        ...


class Subsample:
    """So many rows of another source, drawn anew in every epoch."""

    def __init__(self, source: ExampleSource, count: int) -> None:
        self.source = source
        self.count = count

    def __len__(self) -> int:
        return self.count

    def rows(self, generator: torch.Generator) -> PieceTable:
        rows = self.source.rows(generator)
        return rows[torch.randperm(len(rows), generator=generator)[: self.count]]


class LeftPadded:
    """The rows of another source, each pushed to the right by a random number of PADs.

    A name stands at the beginning of a document and after ten characters of a question. A model with a table
    of positions learns the two apart, and cannot answer about whom it has only read; shifted, it cannot.

    Args:
        source: whose rows to shift.
        least, most: how many PADs, 0 to 64, as far as the row leaves room in the block.
        block_size: characters of the longest row.

    Raises:
        InputError: `least` or `most` is out of range.
    """

    def __init__(self, source: ExampleSource, least: int, most: int, block_size: int) -> None:
        if not 0 <= least <= most <= MAX_SHIFT:
            raise InputError(
                f"stages.pretrain.dataset.max_shift={most}: must be from min_shift={least} to {MAX_SHIFT},"
                " and that not below 0"
            )
        self.source = source
        self.least = least
        self.most = most
        self.block_size = block_size

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, generator: torch.Generator) -> PieceTable:
        rows = self.source.rows(generator)
        room = (self.block_size - rows.totals).clamp(min=0)
        least, most = room.clamp(max=self.least), room.clamp(max=self.most)
        pads = (least + randint_below(most - least + 1, generator))[:, None]
        return PieceTable(
            starts=torch.cat((torch.full_like(pads, PAD_OFFSET), rows.starts), dim=1),
            lengths=torch.cat((pads, rows.lengths), dim=1),
            loss_start=rows.loss_start.clamp(min=1) + pads[:, 0],
        )
