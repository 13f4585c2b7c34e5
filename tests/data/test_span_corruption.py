"""Span corruption loses nothing: what was shown can be put together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from titles import titles

from birthplace_lm.data.masking.spans import RandomSpans, SalientSpans, Spans, SpanSampler
from birthplace_lm.data.sequences import EncodedText
from birthplace_lm.data.span_corruption import SpanCorruption
from birthplace_lm.data.vocab import MASK, PAD, CharVocab
from birthplace_lm.errors import InputError

ADA = "Ada Bo. Ada Bo was born in Rome ."


class Given:
    """The same spans every time."""

    def __init__(self, *spans: tuple[int, ...]) -> None:
        self.spans = Spans(*torch.tensor(spans).T)

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        return self.spans


class Remembered:
    """Another sampler's spans, and what the last ones were."""

    def __init__(self, sampler: SpanSampler) -> None:
        self.sampler = sampler

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        self.last = self.sampler.sample(generator, mask_index)
        return self.last


def pairs(
    documents: list[str],
    spans: SpanSampler,
    closing: bool = False,
    loss_on: str = "all",
    seed: int = 0,
    masks: int = 1,
) -> list[tuple[str, str]]:
    """Inputs and targets of every document, PADs at the end left out."""
    vocab = CharVocab.from_text("".join(documents))
    text = EncodedText.encode(documents, vocab)
    corruption = SpanCorruption(text.pieces, spans, closing, loss_on, 10_000, masks)
    rows = corruption.rows(torch.Generator().manual_seed(seed))
    inputs, targets = rows.inputs_and_targets(text.ids, vocab.pad_id)
    lengths = (rows.totals - 1).tolist()
    for n, x, y in zip(lengths, inputs, targets, strict=True):
        assert set(y[n:].tolist()) <= {vocab.pad_id}
        assert set(x[n + 1 :].tolist()) <= {vocab.pad_id}
    decoded = (map(vocab.decode, ids.tolist()) for ids in (inputs, targets))
    return [(x[:n], y[:n]) for n, x, y in zip(lengths, *decoded, strict=True)]


@pytest.mark.parametrize("closing", [False, True])
def test_example_in_the_docstring(closing: bool) -> None:
    start = ADA.index("Rome")
    characters = f"Ada Bo. Ada Bo was born in {MASK} .{MASK}Rome" + closing * MASK
    spans = Given((0, 0, start, start + 4, len(ADA)))
    assert pairs([ADA], spans, closing) == [(characters[:-1], characters[1:])]
    documented = [line.split(None, 1) for line in (SpanCorruption.__doc__ or "").splitlines()]
    shown = {words[0]: words[1].split("   ")[0] for words in documented if len(words) == 2}
    if not closing:
        assert shown["inputs"].replace("_", MASK) == characters[:-1]
        assert shown["targets"].replace("_", MASK) == characters[1:]


@pytest.mark.parametrize("closing", [False, True])
def test_loss_on_span_is_what_follows_the_second_mask(closing: bool) -> None:
    spans = Given((8, 12, 15, 18, 22), (0, 0, 0, 1, 1), (0, 0, 4, 5, 33))
    ends = closing * MASK
    wanted = [ADA[15:18] + ends, ADA[:1] + ends, ADA[4:5] + ends]
    built = pairs([ADA] * 3, spans, closing, "span")
    for (inputs, targets), masked in zip(built, wanted, strict=True):
        assert targets == PAD * (len(targets) - len(masked)) + masked
        assert inputs[-len(masked)] == MASK  # the loss begins with what the second MASK announces
    assert [inputs for inputs, _ in built] == [inputs for inputs, _ in pairs([ADA] * 3, spans, closing)]


class Several:
    """One document's spans by their rank."""

    def __init__(self, *spans: tuple[int, ...]) -> None:
        self.spans = spans

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        return Spans(*torch.tensor([self.spans[mask_index]]).T)


@pytest.mark.parametrize("loss_on", ["all", "span"])
def test_several_masks_ask_for_several_spans(loss_on: str) -> None:
    """By the docstring; a span that overlaps one before it is left out, the title is not repeated."""
    document = "Ada Bo. Born in 1900, in Rome, an Ada."
    rome, year, shown = (document.index(word) for word in ("Rome", "1900", "in 1900,"))
    spans = Several(
        (8, rome, rome, rome + 4, rome + 4),
        (8, rome + 1, rome + 1, rome + 3, rome + 3),
        (8, shown, year, year + 4, year + 5),
        (0, 0, 0, 3, 3),
    )
    title, rest = "Ada Bo. __", "Rome_in _,_1900___Ada_"
    [(inputs, targets)] = pairs([document], spans, True, loss_on, masks=4)
    wanted = (title + rest).replace("_", MASK)
    assert inputs == wanted[:-1]
    unscored = len(title) - 1 if loss_on == "span" else 0
    assert targets == PAD * unscored + wanted[1 + unscored :]


@given(
    documents=st.lists(st.text("aB é.1", min_size=4, max_size=200), min_size=1, max_size=5),
    salient=st.booleans(),
    masks=st.integers(1, 4),
    block_size=st.integers(16, 64),
    seed=st.integers(0, 99),
)
def test_rows_with_several_masks_fit_and_begin_like_those_with_one(
    documents: list[str], salient: bool, masks: int, block_size: int, seed: int
) -> None:
    spans: SpanSampler = (
        SalientSpans(documents, titles(documents), ["x"], ["B"], block_size, 0.5, 1.0, 1.0)
        if salient
        else RandomSpans(documents, [], [], [], block_size)
    )
    one, more = (pairs(documents, spans, True, seed=seed, masks=n) for n in (1, masks))
    for document, (short, _), (long, targets) in zip(documents, one, more, strict=True):
        row = long + targets[-1]
        assert row.startswith(short + MASK)
        assert len(row) <= masks * block_size
        pieces = row.split(MASK)[:-1]
        assert len(pieces) % 3 == 0
        masked = pieces[2::3]
        assert all(span and span in document for span in masked)
        assert sum(map(len, masked)) <= len(document)  # they do not overlap


letters = st.text("aB é.", min_size=4, max_size=200)


@given(
    documents=st.lists(
        st.builds("{}. {}".format, st.text("aB é", max_size=12), letters), min_size=1, max_size=5
    ),
    salient=st.booleans(),
    closing=st.booleans(),
    block_size=st.integers(8, 128),
    seed=st.integers(0, 99),
)
def test_the_shown_text_can_be_put_together_again(
    documents: list[str], salient: bool, closing: bool, block_size: int, seed: int
) -> None:
    sampler = (
        SalientSpans(documents, titles(documents), ["x"], ["B"], block_size, 0.5, 1.0, 1.0)
        if salient
        else RandomSpans(documents, [], [], [], block_size)
    )
    spans = Remembered(sampler)
    rows = pairs(documents, spans, closing, seed=seed)
    for document, (inputs, targets), span in zip(documents, rows, zip(*spans.last, strict=True), strict=True):
        head, left, start, end, right = map(int, span)
        row = inputs + targets[-1]
        assert targets == row[1:]  # "all": the loss looks at every character that has one before it
        assert len(row) <= block_size
        prefix, suffix, masked, *closed = row.split(MASK)
        assert closed == [""] * closing
        assert masked == document[start:end] != ""
        assert prefix + masked + suffix == document[:head] + document[left:right]


def test_loss_on_something_else() -> None:
    with pytest.raises(ValueError, match="loss_on=masked: must be all or span"):
        SpanCorruption(torch.tensor([[65, 4]]), Given((0, 0, 0, 1, 4)), False, "masked", 64)


@pytest.mark.parametrize(
    ("masks", "closing", "line"),
    [
        (0, True, "masks_per_row=0: must be 1 or more"),
        (2, False, "needs .*closing_mask=true"),
    ],
)
def test_masks_that_are_not_possible(masks: int, closing: bool, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        SpanCorruption(torch.tensor([[65, 4]]), Given((0, 0, 0, 1, 4)), closing, "all", 64, masks)


def test_spans_that_leave_no_room_are_refused() -> None:
    """Bug: the model refused the row later, as an error of ours."""
    for shown, block in ((10, 13), (10, 12)):
        spans = Given((0, 0, 2, 5, shown))
        corruption = SpanCorruption(torch.tensor([[65, 10]]), spans, True, "all", block)
        if shown + 3 <= block:
            assert corruption.rows(torch.Generator()).totals.tolist() == [block]
        else:
            with pytest.raises(InputError, match=r"document 1: .* show 10 characters.*room for 9"):
                corruption.rows(torch.Generator())


@pytest.mark.parametrize("edges", [(0, 0, 2, 200, 200), (0, 0, 5, 3, 8), (0, 4, 2, 5, 8), (3, 1, 3, 5, 8)])
def test_spans_outside_their_document_are_refused(edges: tuple[int, ...]) -> None:
    """A sampler of one's own that left the document trained on text of the next one, without a word."""

    class Sampler:
        def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
            return Spans(*(torch.tensor([edge]) for edge in edges))

    corruption = SpanCorruption(torch.tensor([[65, 10]]), Sampler(), True, "all", 64)
    with pytest.raises(InputError, match=r"Sampler\.sample: document 1 of 10 characters: .* not in order"):
        corruption.rows(torch.Generator())
