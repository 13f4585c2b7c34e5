"""Which span of a document is masked, and how much of the document is shown around it."""

import re
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from birthplace_lm.data.masking.answer_likelihood import TITLE, score_answer_spans
from birthplace_lm.data.randomness import randint_below
from birthplace_lm.errors import InputError

SALIENT = re.compile(r"\d[\d,.]*\d|\d|\b[^\W\d_a-z][\w'-]*(?: [^\W\d_a-z][\w'-]*)*")


class Spans(NamedTuple):
    """For every document: [0, head) and [left, right) are shown, [start, end) within the latter is masked.

    Each is (N,) and 0 <= head <= left <= start < end <= right <= the document's length.
    """

    head: Tensor
    left: Tensor
    start: Tensor
    end: Tensor
    right: Tensor


class SpanSampler(Protocol):
    """Draws one span per document, for all documents at once.

    `rank` counts the spans that have been drawn for the same row.
    """

    def draw(self, generator: torch.Generator, rank: int = 0) -> Spans: ...


class RandomSpans:
    """The 2021 choice: cut the document to a random length, mask a random quarter of that on average.

    Every length from 4 to 7/8 of the block is possible; the masked length is uniform from 1 to half of the
    length (less one), so that its mean is a quarter.

    Args:
        documents: the corpus, a string a document, each at least 4 characters.
        people, places: not looked at.
        block_size: characters of the longest sequence.
    """

    def __init__(
        self, documents: Sequence[str], people: Sequence[str], places: Sequence[str], block_size: int
    ) -> None:
        self.lengths = torch.tensor([len(document) for document in documents])
        self.longest = min(int(block_size * 7 / 8), block_size - 3)  # three MASKs; less only in tiny blocks

    def draw(self, generator: torch.Generator, rank: int = 0) -> Spans:
        shown = torch.randint(4, self.longest + 1, self.lengths.shape, generator=generator)
        shown = torch.minimum(shown, self.lengths)
        masked = 1 + randint_below((shown // 2 - 1).clamp(min=1), generator)
        start = randint_below(shown - masked + 1, generator)
        zero = torch.zeros_like(start)
        return Spans(zero, zero, start, start + masked, shown)


class SalientSpans:
    """Mask what is worth knowing: the likely answer, or a capitalised or numeric span.

    The title, which names the person, stays in front, unless it fills half of the block. Around the masked
    span the document is shown for a random distance, u ** `context_exponent` of what there is room for:
    mostly none, so that the name alone has to bring the answer to mind.

    Which words of a document may be the answer, and how likely, the train questions show; see `likely`.

    Args:
        documents: the corpus, a string a document.
        people, places: of the train questions.
        block_size: characters of the longest sequence.
        answer_probability: how often a likely answer is masked where the document has one; of a row with
            several spans the first.
        sharpness: it is drawn by its probability to this power; more prefers the likeliest.
        context_exponent: larger shows less; 0 shows all that fits.

    Raises:
        InputError: `answer_probability`, `sharpness` or `context_exponent` is out of range.

    Source: salient spans, REALM, arXiv:2002.08909; learning which spans to mask, arXiv:2012.15856.
    """

    def __init__(
        self,
        documents: Sequence[str],
        people: Sequence[str],
        places: Sequence[str],
        block_size: int,
        answer_probability: float,
        sharpness: float,
        context_exponent: float,
    ) -> None:
        key = "stages.pretrain.dataset.spans"
        if not 0 <= answer_probability <= 1:
            raise InputError(f"{key}.answer_probability={answer_probability}: must be from 0 to 1")
        for name, power in (("sharpness", sharpness), ("context_exponent", context_exponent)):
            if not 0 <= power < float("inf"):
                raise InputError(f"{key}.{name}={power}: must be 0 or more")
        self.lengths = torch.tensor([len(document) for document in documents])
        self.block_size = block_size
        self.answer_probability = answer_probability
        self.context_exponent = context_exponent
        room = block_size - 4  # three MASKs and at least one character of title or context
        titles = [match.end() if (match := TITLE.match(d)) else 0 for d in documents]
        heads = [title if title <= room // 2 else 0 for title in titles]
        self.heads = torch.tensor(heads)
        lines = [(d, head, min(room - head, room // 2)) for d, head in zip(documents, heads, strict=True)]
        likely, odds = score_answer_spans(tuple(documents), tuple(people), tuple(places))
        fits = [
            [end - start <= line[2] for start, end in spans]
            for spans, line in zip(likely, lines, strict=True)
        ]
        self.likely = _Choices(
            [[*compress(spans, fit)] for spans, fit in zip(likely, fits, strict=True)],
            [[p**sharpness for p in compress(row, fit)] for row, fit in zip(odds, fits, strict=True)],
        )
        salient = [_matches(SALIENT, *line) or [_whole(*line)] for line in lines]
        self.other = _Choices(salient, [[1.0] * len(spans) for spans in salient])

    def draw(self, generator: torch.Generator, rank: int = 0) -> Spans:
        likely_start, likely_end = self.likely.draw(generator)
        other_start, other_end = self.other.draw(generator)
        answers = self.answer_probability if rank == 0 else 0.0
        take = (torch.rand(self.lengths.shape, generator=generator) < answers) & (self.likely.counts > 0)
        start, end = torch.where(take, likely_start, other_start), torch.where(take, likely_end, other_end)
        head = torch.minimum(self.heads, start)
        room = self.block_size - 3 - head - (end - start)
        left = start - self._shown(torch.minimum(start - head, room), generator)
        room = room - (start - left)
        right = end + self._shown(torch.minimum(self.lengths - end, room), generator)
        return Spans(head, left, start, end, right)

    def _shown(self, most: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(most.shape, generator=generator) ** self.context_exponent
        return (share * (most + 1)).long().clamp(max=most)


class _Choices:
    """Some weighted spans for every document, of which one is drawn."""

    def __init__(
        self, spans: Sequence[Sequence[tuple[int, int]]], weights: Sequence[Sequence[float]]
    ) -> None:
        self.counts = torch.tensor([len(choices) for choices in spans])
        self.last = self.counts.cumsum(0) - 1
        self.spans = torch.tensor([*(span for choices in spans for span in choices), (0, 1)])
        flat = torch.tensor([*(w for row in weights for w in row)], dtype=torch.float64)
        self.sums = torch.cat((torch.zeros(1, dtype=torch.float64), flat.cumsum(0)))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(N,) starts and ends; where there is nothing to choose, of no meaning."""
        low, high = self.sums[self.last + 1 - self.counts], self.sums[self.last + 1]
        at = low + (high - low) * torch.rand(self.counts.shape, generator=generator, dtype=torch.float64)
        first, last = self.last + 1 - self.counts, self.last.clamp(min=0)
        which = torch.searchsorted(self.sums[1:], at, right=True)
        which = torch.minimum(torch.maximum(which, first), last)
        return self.spans[which, 0], self.spans[which, 1]


def _matches(pattern: re.Pattern[str], document: str, head: int, longest: int) -> list[tuple[int, int]]:
    return [m.span() for m in pattern.finditer(document, head) if 0 < m.end() - m.start() <= longest]


def _whole(document: str, head: int, longest: int) -> tuple[int, int]:
    start = head if head < len(document) else 0
    return start, min(len(document), start + longest)
