"""Training sequences as pieces of one tensor of ids, so that building a batch is a few tensor operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab

MAX_SHIFT = 64
PAD_OFFSET, MASK_OFFSET = 0, MAX_SHIFT  # where the ids of an `EncodedText` hold PADs and a MASK


class Batch(TypedDict):
    """Input of a training step.

    Its scalars are Python numbers: they are read without waiting for a GPU, and half precision rounds none.

    Attributes:
        inputs: (B, T) ids, PAD after each row's end.
        targets: (B, T) ids of the next character; PAD where there is no loss.
        batch_id: epoch, and index of the batch within it.
        loss_denominator: number of targets with loss in the batch of all processes, divided by the number of
            processes. Each process divides its summed loss by it, so that the mean over processes is exact.
        characters: number of characters over all rows and processes, without PADs and without the last
            character of each row.
    """

    inputs: Tensor
    targets: Tensor
    batch_id: tuple[int, int]
    loss_denominator: float
    characters: int


@dataclass(frozen=True)
class EncodedText:
    """Many strings in one tensor of ids; `pieces` (N, 2) holds the start and the length of each.

    >>> text = EncodedText.encode(["Ada", "Bo"], CharVocab.from_text("AdaBo"))
    >>> text.pieces.tolist()
    [[65, 3], [68, 2]]

    The first ids are `MAX_SHIFT` PADs and one MASK, so that a piece of a sequence can also be PADs or a MASK.
    """

    ids: Tensor
    pieces: Tensor

    @classmethod
    def encode(cls, strings: Sequence[str], vocab: CharVocab) -> "EncodedText":
        """Encodes every string.

        Raises:
            InputError: a character is not in the vocabulary.
        """
        ids = [vocab.pad_id] * MAX_SHIFT + [vocab.mask_id]
        pieces = []
        for string in strings:
            encoded = vocab.encode(string)
            pieces.append((len(ids), len(encoded)))
            ids.extend(encoded)
        return cls(torch.tensor(ids), torch.tensor(pieces))


@dataclass(frozen=True)
class PieceTable:
    """R sequences, each the concatenation of K pieces of one tensor of ids.

    Attributes:
        starts, lengths: (R, K) start and length of each piece; a piece of length 0 is left out.
        loss_start: (R,) the first character of each sequence that is predicted.
    """

    starts: Tensor
    lengths: Tensor
    loss_start: Tensor

    def __len__(self) -> int:
        return len(self.loss_start)

    def __getitem__(self, rows: Tensor) -> "PieceTable":
        return PieceTable(self.starts[rows], self.lengths[rows], self.loss_start[rows])

    @staticmethod
    def stack(tables: Sequence["PieceTable"]) -> "PieceTable":
        """Concatenates the rows of all tables; rows with fewer pieces get empty ones."""
        pieces = max(table.starts.shape[1] for table in tables)

        def widen(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, pieces - x.shape[1]))

        return PieceTable(
            torch.cat([widen(table.starts) for table in tables]),
            torch.cat([widen(table.lengths) for table in tables]),
            torch.cat([table.loss_start for table in tables]),
        )

    @property
    def totals(self) -> Tensor:
        """(R,) characters of each sequence."""
        return self.lengths.sum(1)

    def characters(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (R, L), L being the longest sequence, and a bool mask (R, L) of positions past the end."""
        ends = self.lengths.cumsum(1)  # (R, K)
        totals = ends[:, -1]
        position = torch.arange(int(totals.max())).expand(len(self), -1).contiguous()  # (R, L)
        piece = torch.searchsorted(ends, position, right=True).clamp(max=ends.shape[1] - 1)
        offset = self.starts.gather(1, piece) + position - (ends - self.lengths).gather(1, piece)
        past_end = position >= totals[:, None]
        return ids[offset.masked_fill(past_end, 0)], past_end

    def inputs_and_targets(self, ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (R, L - 1): all characters but the last, and all but the first."""
        characters, past_end = self.characters(ids)
        characters = characters.masked_fill(past_end, pad_id)
        position = torch.arange(characters.shape[1])
        targets = characters.masked_fill(position < self.loss_start[:, None], pad_id)
        return characters[:, :-1], targets[:, 1:]
