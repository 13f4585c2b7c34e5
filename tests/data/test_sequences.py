"""Rows against strings that are put together one character at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from birthplace_lm.data.sequences import MASK_OFFSET, MAX_SHIFT, PAD_OFFSET, EncodedText, PieceTable
from birthplace_lm.data.vocab import MASK, PAD, CharVocab
from birthplace_lm.errors import InputError

SOURCE = "Ada Bo was born in Århus ."
WHOLE = PAD * MAX_SHIFT + MASK + SOURCE  # what `Text.ids` spells
VOCAB = CharVocab.from_text(SOURCE)
IDS = EncodedText.encode([SOURCE], VOCAB).ids

piece = st.integers(0, len(WHOLE) - 1).flatmap(
    lambda start: st.tuples(st.just(start), st.integers(0, min(9, len(WHOLE) - start)))
)
Piece = tuple[int, int]
Row = tuple[list[Piece], int]


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    """Pieces and `loss_start` of 1 to 6 rows of equally many pieces; many pieces are empty."""
    count = draw(st.integers(1, 5))
    pieces = st.lists(
        piece | st.tuples(st.integers(0, len(WHOLE)), st.just(0)), min_size=count, max_size=count
    )
    return draw(st.lists(st.tuples(pieces, st.integers(0, 20)), min_size=1, max_size=6))


def as_rows(rows: list[Row]) -> PieceTable:
    pieces = torch.tensor([pieces for pieces, _ in rows])
    return PieceTable(pieces[:, :, 0], pieces[:, :, 1], torch.tensor([loss_start for _, loss_start in rows]))


def spelled(row: Row) -> str:
    text = ""
    for start, length in row[0]:
        for i in range(length):
            text += WHOLE[start + i]
    return text


@given(some_rows())
def test_rows_are_their_pieces_one_after_the_other(rows: list[Row]) -> None:
    texts = [spelled(row) for row in rows]
    characters, over = as_rows(rows).characters(IDS)
    assert characters.shape == over.shape == (len(rows), max(map(len, texts)))
    assert as_rows(rows).totals.tolist() == [len(text) for text in texts]
    for text, ids, ended in zip(texts, characters, over, strict=True):
        assert VOCAB.decode(ids[~ended].tolist()) == text
        assert ended.tolist() == [i >= len(text) for i in range(len(ended))]


@given(some_rows())
def test_targets_are_the_next_characters_from_loss_from_on(rows: list[Row]) -> None:
    texts = [spelled(row) for row in rows]
    width = max(map(len, texts))
    inputs, targets = as_rows(rows).inputs_and_targets(IDS, VOCAB.pad_id)
    for text, (_, loss_start), x, y in zip(texts, rows, inputs, targets, strict=True):
        padded = text + PAD * (width - len(text))
        wanted = [c if i >= loss_start else PAD for i, c in enumerate(padded)]
        assert VOCAB.decode(x.tolist()) == padded[:-1]
        assert VOCAB.decode(y.tolist()) == "".join(wanted[1:])


@given(some_rows(), some_rows())
@settings(max_examples=50)
def test_stack_and_index_keep_every_row(one: list[Row], two: list[Row]) -> None:
    both = [*one, *two]
    stacked = PieceTable.stack([as_rows(one), as_rows(two)])
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(len(both)))
    assert len(stacked) == len(both)
    chosen = stacked[order]
    characters, over = chosen.characters(IDS)
    for i, ids, ended, loss_start in zip(order, characters, over, chosen.loss_start, strict=True):
        assert VOCAB.decode(ids[~ended].tolist()) == spelled(both[i])
        assert loss_start == both[i][1]


@given(st.lists(st.text(alphabet=SOURCE), min_size=1))
def test_text_gives_every_string_back(strings: list[str]) -> None:
    text = EncodedText.encode(strings, VOCAB)
    assert [VOCAB.decode(text.ids[a : a + n].tolist()) for a, n in text.pieces] == strings
    assert VOCAB.decode(text.ids[PAD_OFFSET : PAD_OFFSET + MAX_SHIFT].tolist()) == PAD * MAX_SHIFT
    assert VOCAB.decode([int(text.ids[MASK_OFFSET])]) == MASK


def test_text_as_documented() -> None:
    assert EncodedText.encode(["Ada", "Bo"], CharVocab.from_text("AdaBo")).pieces.tolist() == [
        [65, 3],
        [68, 2],
    ]
    with pytest.raises(InputError, match=r"'x' U\+0078"):
        EncodedText.encode(["Ada", "xyz"], VOCAB)
