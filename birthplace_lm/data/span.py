"""Which span of a document is masked, and how much of the document is shown around it."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from birthplace_lm.data.source import below

TITLE = re.compile(r"^.*?\w{2}[\w)'\"]\. ")  # "J. R. Smith. " ends after Smith: an initial's dot is too early
SALIENT = re.compile(r"\d[\d,.]*\d|\d|[^\W\d_a-z][\w'-]*(?: [^\W\d_a-z][\w'-]*)*")


class Spans(NamedTuple):
    """For every document: [0, head) and [left, right) are shown, [start, end) within the latter is masked.

    Each is (N,) and 0 <= head <= left <= start < end <= right <= the document's length.
    """

    head: Tensor
    left: Tensor
    start: Tensor
    end: Tensor
    right: Tensor


class SpanChooser(Protocol):
    """Draws one span per document, for all documents at once."""

    def draw(self, generator: torch.Generator) -> Spans: ...


class RandomSpans:
    """The 2021 choice: cut the document to a random length, mask a random quarter of that on average.

    Every length from 4 to 7/8 of the block is possible; the masked length is uniform from 1 to half of the
    length (less one), so that its mean is a quarter.

    Args:
        documents: the corpus, a string a document, each at least 4 characters.
        places: not looked at.
        block_size: characters of the longest sequence.
    """

    def __init__(self, documents: Sequence[str], places: Sequence[str], block_size: int) -> None:
        self.lengths = torch.tensor([len(document) for document in documents])
        self.longest = int(block_size * 7 / 8)

    def draw(self, generator: torch.Generator) -> Spans:
        shown = torch.randint(4, self.longest + 1, self.lengths.shape, generator=generator)
        shown = torch.minimum(shown, self.lengths)
        masked = 1 + below((shown // 2 - 1).clamp(min=1), generator)
        start = below(shown - masked + 1, generator)
        zero = torch.zeros_like(start)
        return Spans(zero, zero, start, start + masked, shown)


class SalientSpans:
    """Mask what is worth knowing: a place of the train answers, or a capitalised or numeric span.

    The title, which names the person, always stays in front. Around the masked span the document is shown for
    a random distance, u ** `context_power` of what there is room for: mostly none, so that the name alone has
    to bring the answer to mind.

    Args:
        documents: the corpus, a string a document.
        places: the gazetteer, the places of the train answers.
        block_size: characters of the longest sequence.
        gazetteer: how often a place is masked where the document has one.
        context_power: larger shows less; 0 shows all that fits.

    Source: salient spans, REALM, arXiv:2002.08909.
    """

    def __init__(
        self,
        documents: Sequence[str],
        places: Sequence[str],
        block_size: int,
        gazetteer: float,
        context_power: float,
    ) -> None:
        self.lengths = torch.tensor([len(document) for document in documents])
        self.block_size = block_size
        self.gazetteer = gazetteer
        self.context_power = context_power
        names = "|".join(re.escape(place) for place in sorted(set(places), key=len, reverse=True))
        place = re.compile(rf"\b(?:{names})\b")
        room = block_size - 4  # three MASKs and at least one character of title or context
        titles = [match.end() if (match := TITLE.match(d)) else 0 for d in documents]
        heads = [title if title <= room // 2 else 0 for title in titles]
        longest = [min(room - head, room // 2) for head in heads]
        self.heads = torch.tensor(heads)
        self.known = _Choices(
            [_matches(place, d, h, m) for d, h, m in zip(documents, heads, longest, strict=True)]
        )
        salient = [_matches(SALIENT, d, h, m) for d, h, m in zip(documents, heads, longest, strict=True)]
        whole = [
            [(h, min(len(d), h + m))] if len(d) > h else [(0, min(len(d), m))]
            for d, h, m in zip(documents, heads, longest, strict=True)
        ]
        self.other = _Choices([s or w for s, w in zip(salient, whole, strict=True)])

    def draw(self, generator: torch.Generator) -> Spans:
        known_start, known_end = self.known.draw(generator)
        other_start, other_end = self.other.draw(generator)
        take = (torch.rand(self.lengths.shape, generator=generator) < self.gazetteer) & (
            self.known.counts > 0
        )
        start, end = torch.where(take, known_start, other_start), torch.where(take, known_end, other_end)
        head = torch.minimum(self.heads, start)
        room = self.block_size - 3 - head - (end - start)
        left = start - self._shown(torch.minimum(start - head, room), generator)
        room = room - (start - left)
        right = end + self._shown(torch.minimum(self.lengths - end, room), generator)
        return Spans(head, left, start, end, right)

    def _shown(self, most: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(most.shape, generator=generator) ** self.context_power
        return (share * (most + 1)).long().clamp(max=most)


class _Choices:
    """Some spans for every document, of which one is drawn."""

    def __init__(self, spans: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.counts = torch.tensor([len(choices) for choices in spans])
        self.first = self.counts.cumsum(0) - self.counts
        flat = [span for choices in spans for span in choices]
        self.spans = torch.tensor([*flat, (0, 1)])

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(N,) starts and ends; where there is nothing to choose, of no meaning."""
        which = self.first + below(self.counts.clamp(min=1), generator)
        return self.spans[which, 0], self.spans[which, 1]


def _matches(pattern: re.Pattern[str], document: str, head: int, longest: int) -> list[tuple[int, int]]:
    return [m.span() for m in pattern.finditer(document, head) if m.end() - m.start() <= longest]
