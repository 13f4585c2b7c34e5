"""Training sequences as pieces of one tensor of characters, so that a batch is a few tensor operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab

MAX_SHIFT = 64
PAD_OFFSET, MASK_OFFSET = 0, MAX_SHIFT  # where a `EncodedText` holds them


class Batch(TypedDict):
    """What a training step gets.

    Attributes:
        inputs: (B, T) ids, PAD after each row's end.
        targets: (B, T) ids of the following character; PAD where the loss does not look.
        key: (2,) epoch and index of the batch.
        loss_denominator: how many targets count in the batch over all processes, divided by their number:
            what the summed loss of one process is divided by, so that the mean over processes is exact.
        characters: of all rows, over all processes; PADs, and the last of each row, do not count.
    """

    inputs: Tensor
    targets: Tensor
    key: Tensor
    loss_denominator: Tensor
    characters: Tensor


@dataclass(frozen=True)
class EncodedText:
    """Many strings in one tensor; `pieces` (N, 2) holds where each begins and how long it is.

    >>> text = Text.encode(["Ada", "Bo"], CharVocab.from_text("AdaBo"))
    >>> text.pieces.tolist()
    [[65, 3], [68, 2]]

    The first ids are `MAX_SHIFT` times PAD and then MASK, so that a piece of a sequence can also be those.
    """

    ids: Tensor
    pieces: Tensor

    @classmethod
    def encode(cls, strings: Sequence[str], vocab: CharVocab) -> "EncodedText":
        """Encode every string; raises InputError for a character outside the vocabulary."""
        ids = [vocab.pad_id] * MAX_SHIFT + [vocab.mask_id]
        pieces = []
        for string in strings:
            encoded = vocab.encode(string)
            pieces.append((len(ids), len(encoded)))
            ids.extend(encoded)
        return cls(torch.tensor(ids), torch.tensor(pieces))


@dataclass(frozen=True)
class PieceTable:
    """R sequences, each the concatenation of K pieces of one tensor of characters.

    Attributes:
        starts, lengths: (R, K) where each piece begins and how long it is; 0 leaves it out.
        loss_start: (R,) the first character of the sequence that has to be predicted.
    """

    starts: Tensor
    lengths: Tensor
    loss_start: Tensor

    def __len__(self) -> int:
        return len(self.loss_start)

    def __getitem__(self, which: Tensor) -> "PieceTable":
        return PieceTable(self.starts[which], self.lengths[which], self.loss_start[which])

    @staticmethod
    def stack(parts: Sequence["PieceTable"]) -> "PieceTable":
        """All rows of all parts; parts with fewer pieces get empty ones."""
        pieces = max(part.starts.shape[1] for part in parts)

        def widen(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, pieces - x.shape[1]))

        return PieceTable(
            torch.cat([widen(part.starts) for part in parts]),
            torch.cat([widen(part.lengths) for part in parts]),
            torch.cat([part.loss_start for part in parts]),
        )

    @property
    def totals(self) -> Tensor:
        """(R,) characters of each sequence."""
        return self.lengths.sum(1)

    def characters(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The sequences, cut to the longest: ids (R, L), and where a row has ended, (R, L) bool."""
        ends = self.lengths.cumsum(1)  # (R, K)
        totals = ends[:, -1]
        position = torch.arange(int(totals.max())).expand(len(self), -1).contiguous()  # (R, L)
        piece = torch.searchsorted(ends, position, right=True).clamp(max=ends.shape[1] - 1)
        source = self.starts.gather(1, piece) + position - (ends - self.lengths).gather(1, piece)
        over = position >= totals[:, None]
        return ids[source.masked_fill(over, 0)], over

    def pairs(self, ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (R, L - 1): all but the last character, all but the first."""
        characters, over = self.characters(ids)
        characters = characters.masked_fill(over, pad_id)
        position = torch.arange(characters.shape[1])
        targets = characters.masked_fill(position < self.loss_start[:, None], pad_id)
        return characters[:, :-1], targets[:, 1:]
