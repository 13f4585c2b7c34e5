"""Span samplers: which span of a document is masked, and how much context is shown around it."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from birthplace_lm.data.masking.answer_likelihood import CAPITAL, WORD, score_answer_spans
from birthplace_lm.data.randomness import randint_below

CAPITALISED_PHRASE = re.compile(rf"\b{CAPITAL}[\w'-]*(?: {CAPITAL}[\w'-]*)*")
MAX_UNTITLED = 0.01  # of the documents; a name such as "Anastasius I" is not told from an initial
SALIENT = re.compile(rf"\d[\d,.]*\d|\d|{CAPITALISED_PHRASE.pattern}")


class Spans(NamedTuple):
    """Per document: [0, title_end) and [context_start, context_end) are shown, [start, end) is masked.

    Each is (N,) and 0 <= title_end <= context_start <= start < end <= context_end <= the document's length.
    """

    title_end: Tensor
    context_start: Tensor
    start: Tensor
    end: Tensor
    context_end: Tensor


class SpanSampler(Protocol):
    """Samples one span per document, for all documents at once.

    `mask_index` is the number of spans that were already sampled for the same row.
    """

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans: ...


class RandomSpans:
    """Span masking of 2021: truncate the document to a random length, mask a quarter of that on average.

    The length is uniform from 4 to 7/8 of the block; the masked length is uniform from 1 to half of the
    length (less one), so that its mean is a quarter.

    Args:
        documents: one string per document, each at least 4 characters.
        titles, people, places: not used.
        block_size: characters of the longest sequence.
    """

    def __init__(
        self,
        documents: Sequence[str],
        titles: Sequence[str],
        people: Sequence[str],
        places: Sequence[str],
        block_size: int,
    ) -> None:
        self.lengths = torch.tensor([len(document) for document in documents])
        self.max_length = min(
            int(block_size * 7 / 8), block_size - 3
        )  # room for three MASKs: smaller only in tiny blocks

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        shown = torch.randint(4, self.max_length + 1, self.lengths.shape, generator=generator)
        shown = torch.minimum(shown, self.lengths)
        masked = 1 + randint_below((shown // 2 - 1).clamp(min=1), generator)
        start = randint_below(shown - masked + 1, generator)
        zero = torch.zeros_like(start)
        return Spans(zero, zero, start, start + masked, shown)


class _TitledSpans:
    """Samplers that show the title, which names the person, before the masked span.

    A title longer than half of the block is left out. The span is shown with a context of random length,
    u ** `context_exponent` of the available room on each side, where u is uniform in [0, 1). With a large
    exponent the context is mostly empty, so that the model must recall the span from the name alone.

    Attributes:
        warnings: for the log, about documents without a title.
    """

    def __init__(
        self, documents: Sequence[str], titles: Sequence[str], block_size: int, context_exponent: float
    ) -> None:
        _check_not_negative("context_exponent", context_exponent)
        self.lengths = torch.tensor([len(document) for document in documents])
        self.block_size = block_size
        self.context_exponent = context_exponent
        room = block_size - 4  # three MASKs and at least one character of title or context
        title_ends = [len(title) if len(title) <= room // 2 else 0 for title in titles]
        self.title_ends = torch.tensor(title_ends)
        untitled = title_ends.count(0)
        self.warnings: list[str] = []
        if untitled > MAX_UNTITLED * len(documents):
            self.warnings = [
                f"{untitled} of {len(documents)} lines have no title 'Full Name. ' that fits: what is masked"
                " in them is shown without the name"
            ]
        self.max_lengths = [min(room - title_end, room // 2) for title_end in title_ends]

    def _weighted(
        self, spans: Sequence[Sequence[tuple[int, int]]], weights: Sequence[Sequence[float]] | None = None
    ) -> "_WeightedSpans":
        """Those of the documents' spans that are not longer than `max_lengths` and have a weight above 0."""
        weights = weights or [[1.0] * len(row) for row in spans]
        fits = [
            [
                end - start <= max_length and weight > 0
                for (start, end), weight in zip(row, row_weights, strict=True)
            ]
            for row, row_weights, max_length in zip(spans, weights, self.max_lengths, strict=True)
        ]
        return _WeightedSpans(
            [[*compress(row, fit)] for row, fit in zip(spans, fits, strict=True)],
            [[*compress(row, fit)] for row, fit in zip(weights, fits, strict=True)],
        )

    def _salient_or_any(self, documents: Sequence[str]) -> "_WeightedSpans":
        """Capitalised and numeric spans after the title; if there are none, as much text as may be masked."""
        rows = []
        for document, title_end, max_length in zip(
            documents, self.title_ends.tolist(), self.max_lengths, strict=True
        ):
            spans = [match.span() for match in SALIENT.finditer(document, title_end)]
            start = title_end if title_end < len(document) else 0
            rows.append(
                [(start, end) for start, end in spans if end - start <= max_length]
                or [(start, min(len(document), start + max_length))]
            )
        return self._weighted(rows)

    def _shown(self, start: Tensor, end: Tensor, generator: torch.Generator) -> Spans:
        """The masked spans [start, end) with title and context."""
        title_end = torch.minimum(self.title_ends, start)
        room = self.block_size - 3 - title_end - (end - start)
        context_start = start - self._context(torch.minimum(start - title_end, room), generator)
        room = room - (start - context_start)
        context_end = end + self._context(torch.minimum(self.lengths - end, room), generator)
        return Spans(title_end, context_start, start, end, context_end)

    def _context(self, limit: Tensor, generator: torch.Generator) -> Tensor:
        fraction = torch.rand(limit.shape, generator=generator) ** self.context_exponent
        return (fraction * (limit + 1)).long().clamp(max=limit)


class SalientSpans(_TitledSpans):
    """Salient span masking: mask the likely answer, or a capitalised or numeric span.

    The title stays in front, unless it is longer than half of the block. `context_exponent` decides how much
    text is shown around the span. The train questions show which words of a document may be the answer; see
    `answer_likelihood`.

    Args:
        documents: one string per document.
        titles: the name that each begins with, followed by ". ", or "".
        people, places: of the train questions.
        block_size: characters of the longest sequence.
        answer_probability: how often a likely answer is masked in a document that has one. Applies to the
            first span of a row.
        sharpness: answers are sampled by their probability to this power; more prefers the likeliest.
        context_exponent: larger values show less context; 0 shows everything that fits.

    Raises:
        ValueError: `answer_probability`, `sharpness` or `context_exponent` is out of range.

    Source: salient spans, REALM, arXiv:2002.08909; learning which spans to mask, arXiv:2012.15856.
    """

    def __init__(
        self,
        documents: Sequence[str],
        titles: Sequence[str],
        people: Sequence[str],
        places: Sequence[str],
        block_size: int,
        answer_probability: float,
        sharpness: float,
        context_exponent: float,
    ) -> None:
        if not 0 <= answer_probability <= 1:
            raise ValueError(f"answer_probability={answer_probability}: must be from 0 to 1")
        _check_not_negative("sharpness", sharpness)
        super().__init__(documents, titles, block_size, context_exponent)
        self.answer_probability = answer_probability
        spans, probabilities = score_answer_spans(
            tuple(documents), tuple(titles), tuple(people), tuple(places)
        )
        weights = [[p**sharpness if p else 0.0 for p in row] for row in probabilities]  # 0**0 is 1
        self.answers = self._weighted(spans, weights)
        self.salient = self._salient_or_any(documents)

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        answer_start, answer_end = self.answers.sample(generator)
        salient_start, salient_end = self.salient.sample(generator)
        probability = self.answer_probability if mask_index == 0 else 0.0
        is_answer = torch.rand(self.lengths.shape, generator=generator) < probability
        is_answer &= self.answers.counts > 0
        start = torch.where(is_answer, answer_start, salient_start)
        end = torch.where(is_answer, answer_end, salient_end)
        return self._shown(start, end, generator)


class EntitySpans(_TitledSpans):
    """Entity span masking without labels: mask a name that other documents mention, too.

    An entity is a capitalised phrase that occurs after the title in two different documents or more. A single
    word must also occur at least as often capitalised as in lower case, which excludes "Born" at the start of
    a sentence. Important facts mostly come first in a text, so earlier entities are masked more often. In a
    document without an entity any capitalised or numeric span is masked. Title and context are those of
    `SalientSpans`.

    Args:
        documents: one string per document.
        titles: the name that each begins with, followed by ". ", or "".
        people, places: not used: no answer has a part in the choice.
        block_size: characters of the longest sequence.
        lead_exponent: the n-th entity of a document is drawn with weight n ** -`lead_exponent`; 0: all alike.
        context_exponent: larger values show less context; 0 shows everything that fits.

    Raises:
        ValueError: `lead_exponent` or `context_exponent` is negative or infinite.
    """

    def __init__(
        self,
        documents: Sequence[str],
        titles: Sequence[str],
        people: Sequence[str],
        places: Sequence[str],
        block_size: int,
        lead_exponent: float,
        context_exponent: float,
    ) -> None:
        _check_not_negative("lead_exponent", lead_exponent)
        super().__init__(documents, titles, block_size, context_exponent)
        entities = _entities(documents, self.title_ends.tolist())
        weights = [[n**-lead_exponent for n in range(1, len(row) + 1)] for row in entities]
        self.entities = self._weighted(entities, weights)
        self.salient = self._salient_or_any(documents)

    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        entity_start, entity_end = self.entities.sample(generator)
        salient_start, salient_end = self.salient.sample(generator)
        has_entity = self.entities.counts > 0
        start = torch.where(has_entity, entity_start, salient_start)
        end = torch.where(has_entity, entity_end, salient_end)
        return self._shown(start, end, generator)


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: must be 0 or more")


def _entities(documents: Sequence[str], title_ends: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Capitalised phrases after the title that recur in another document and are no common word."""
    candidates = [
        [*CAPITALISED_PHRASE.finditer(document, title_end)]
        for document, title_end in zip(documents, title_ends, strict=True)
    ]
    distinct = dict(zip(documents, candidates, strict=True))  # a copy of a line is no other document
    mentions = Counter(phrase for row in distinct.values() for phrase in {match[0] for match in row})
    words = Counter(word for document in documents for word in WORD.findall(document))

    def is_entity(phrase: str) -> bool:
        return mentions[phrase] > 1 and words[phrase.lower()] <= words[phrase]

    return [[match.span() for match in row if is_entity(match[0])] for row in candidates]


class _WeightedSpans:
    """Weighted candidate spans of every document; `sample` draws one per document."""

    def __init__(
        self, spans: Sequence[Sequence[tuple[int, int]]], weights: Sequence[Sequence[float]]
    ) -> None:
        self.counts = torch.tensor([len(row) for row in spans])
        self.last = self.counts.cumsum(0) - 1
        self.spans = torch.tensor([*(span for row in spans for span in row), (0, 1)])
        flat = torch.tensor([*(weight for row in weights for weight in row)], dtype=torch.float64)
        self.cumulative = torch.cat((torch.zeros(1, dtype=torch.float64), flat.cumsum(0)))

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(N,) starts and ends; meaningless for documents without candidates."""
        first, last = self.last + 1 - self.counts, self.last.clamp(min=0)
        low, high = self.cumulative[first], self.cumulative[self.last + 1]
        uniform = torch.rand(self.counts.shape, generator=generator, dtype=torch.float64)
        index = torch.searchsorted(self.cumulative[1:], low + (high - low) * uniform, right=True)
        index = torch.minimum(torch.maximum(index, first), last)
        return self.spans[index, 0], self.spans[index, 1]
