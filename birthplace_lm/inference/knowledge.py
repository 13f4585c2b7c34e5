"""How many bits about people's places a model holds: what it can tell in a question, and in its text."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT

SMOOTHING = 0.3  # added to the count of every place
BATCH = 256


@dataclass(frozen=True)
class PlacePrior:
    """What is known of a place without the name: the smoothed frequencies of the train answers.

    q(place) = (count + 0.3) / (all + 0.3 (2 V)) with V different train answers: as many places again are
    expected that train does not have, each with count 0.
    """

    counts: Mapping[str, int]

    @classmethod
    def of(cls, corpus: Corpus) -> "PlacePrior":
        return cls(Counter(row.place for row in corpus.train.rows if row.place))

    def bits(self, place: str) -> float:
        """-log2 q(place)."""
        total = sum(self.counts.values()) + 2 * SMOOTHING * len(self.counts)
        return -math.log2((self.counts.get(place, 0) + SMOOTHING) / total)


def text_prompt(vocab: CharVocab, template: QuestionTemplate, name: str, shift: int | None) -> list[int]:
    """The ids of `PADs NAME. MASK MASK`, as span corruption asks for a place without any context.

    Args:
        shift: PADs in front; None: as many as a question has characters before the name.
    """
    pads = len(template.prefix) if shift is None else shift
    text = vocab.encode_known(vocab.replace_unknown(f"{name}. "))[0]
    return [*[vocab.pad_id] * pads, *text, vocab.mask_id, vocab.mask_id]


@torch.no_grad()
def log_probabilities(
    model: GPT, vocab: CharVocab, prompts: Sequence[Sequence[int]], answers: Sequence[str]
) -> Tensor:
    """log P(answer and its closing MASK | prompt) of one answer for each prompt, (N), in nats.

    What does not fit into the block has probability 0, and so has an answer with unknown characters.

    Args:
        model: in evaluation mode, on any device.
    """
    device = model.tok_emb.weight.device
    scores = torch.full((len(prompts),), -torch.inf)
    rows = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        target = [*vocab.encode_known(answer)[0], vocab.mask_id]
        if all(c in vocab for c in answer) and len(prompt) + len(target) - 1 <= model.block_size:
            rows[i] = [*prompt, *target]
    order = sorted(rows, key=lambda i: len(rows[i]))
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [vocab.pad_id] * (width - len(rows[i])) for i in batch], device=device)
        log_p = F.log_softmax(model(ids[:, :-1]).float(), -1).gather(2, ids[:, 1:, None])[..., 0]
        position = torch.arange(1, width, device=device)
        starts = torch.tensor([len(prompts[i]) for i in batch], device=device)[:, None]
        ends = torch.tensor([len(rows[i]) for i in batch], device=device)[:, None]
        chosen = (position >= starts) & (position < ends)
        scores[batch] = log_p.where(chosen, 0.0).sum(1).cpu()
    return scores


@dataclass(frozen=True)
class Bits:
    """Mean bits per person about the place, over the prior.

    Attributes:
        prior: -log2 q(place): what a model that knows every place has.
        extractable: log2 P(place | question) - log2 q(place); at most `prior`, 0 for the prior itself, and
            negative for a model that is worse than it.
        stored: the same with the name in the form of the text; None if pretraining has no such form.
    """

    prior: float
    extractable: float
    stored: float | None

    @property
    def gap(self) -> float | None:
        """1 - extractable / stored; None where nothing is stored."""
        if self.stored is None or self.stored <= 0:
            return None
        return 1 - self.extractable / self.stored


def bits_about(prior: PlacePrior, places: Sequence[str], log_p: Sequence[float]) -> float:
    """The mean over people of log2 P(place) - log2 q(place); nothing is clipped.

    Args:
        log_p: log P of each place, in nats.
    """
    bits = [p / math.log(2) + prior.bits(place) for place, p in zip(places, log_p, strict=True)]
    return sum(bits) / max(1, len(bits))
