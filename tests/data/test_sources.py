"""What is done to rows: a part of them, and PADs in front."""

import pytest
import torch
from torch import Tensor

from birthplace_lm.data.randomness import randint_below
from birthplace_lm.data.sequences import MAX_SHIFT, EncodedText, PieceTable
from birthplace_lm.data.sources import LeftPadded, Subsample
from birthplace_lm.data.vocab import PAD, CharVocab

STRINGS = ["a", "bc", "def", "ghijklmnop", "qrstuvwxyz" * 2]
VOCAB = CharVocab.from_text("".join(STRINGS))
TEXT = EncodedText.encode(STRINGS, VOCAB)


class Plain:
    """The strings as they are, with loss from a given character on."""

    def __init__(self, loss_start: int = 0) -> None:
        starts, lengths = TEXT.pieces.T[:, :, None]
        self._rows = PieceTable(starts, lengths, torch.full((len(STRINGS),), loss_start))

    def __len__(self) -> int:
        return len(STRINGS)

    def rows(self, generator: torch.Generator) -> PieceTable:
        return self._rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spelled(rows: PieceTable) -> list[str]:
    characters, over = rows.characters(TEXT.ids)
    return [VOCAB.decode(ids[~ended].tolist()) for ids, ended in zip(characters, over, strict=True)]


def decoded(ids: Tensor) -> list[str]:
    return [VOCAB.decode(row) for row in ids.tolist()]


def test_below_is_uniform_for_every_limit() -> None:
    limits = torch.arange(1, 12).repeat_interleave(4000)
    draws = randint_below(limits, generator())
    for limit in range(1, 12):
        counts = torch.bincount(draws[limits == limit], minlength=limit)
        assert len(counts) == limit
        expected = 4000 / limit
        assert ((counts - expected) ** 2 / expected).sum() < limit - 1 + 5 * (2 * limit) ** 0.5  # chi-square


@pytest.mark.parametrize("count", [0, 1, 3, len(STRINGS)])
def test_sample_draws_so_many_different_rows_anew(count: int) -> None:
    sample = Subsample(Plain(), count)
    draws = [spelled(sample.rows(generator(seed))) if count else [] for seed in range(40)]
    assert len(sample) == count
    assert all(len(draw) == len(set(draw)) == count for draw in draws)
    if count:
        assert set().union(*draws) == set(STRINGS)
        assert len(set(map(tuple, draws))) > 1
        assert spelled(sample.rows(generator(7))) == draws[7]


@pytest.mark.parametrize(
    ("least", "most", "block_size"), [(0, 0, 30), (0, 3, 30), (5, 7, 22), (0, 64, 22), (5, 5, 12)]
)
def test_shifted_puts_pads_in_front_as_far_as_there_is_room(least: int, most: int, block_size: int) -> None:
    shifted = LeftPadded(Plain(), least, most, block_size)
    assert len(shifted) == len(STRINGS)
    seen: list[set[int]] = [set() for _ in STRINGS]
    for seed in range(1500):
        for pads, string, row in zip(seen, STRINGS, spelled(shifted.rows(generator(seed))), strict=True):
            shift = len(row) - len(string)
            assert row == PAD * shift + string
            pads.add(shift)
    room = [max(0, block_size - len(string)) for string in STRINGS]
    assert seen == [set(range(min(least, n), min(most, n) + 1)) for n in room]


@pytest.mark.parametrize("loss_start", [0, 1, 2])
def test_shifted_predicts_the_same_characters(loss_start: int) -> None:
    """Neither a PAD nor the first character, which only PADs announce, is a target."""
    rows = LeftPadded(Plain(loss_start), 2, 5, 40).rows(generator(3))
    inputs, targets = rows.inputs_and_targets(TEXT.ids, VOCAB.pad_id)
    for string, row, x, y in zip(STRINGS, spelled(rows), decoded(inputs), decoded(targets), strict=True):
        assert y.replace(PAD, "") == string[max(1, loss_start) :]
        assert all(c in (PAD, after) for c, after in zip(y, (row + PAD * len(y))[1:], strict=False))
        assert x.startswith(row[:-1])


@pytest.mark.parametrize(("least", "most"), [(0, -1), (0, MAX_SHIFT + 1), (0, 10**9), (-1, 3), (5, 4)])
def test_shift_out_of_range(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=rf"max_shift={most}: must be from min_shift={least} to {MAX_SHIFT}"):
        LeftPadded(Plain(), least, most, 128)
