"""How many bits about people's places a model holds: what it can tell in a question, and in its text."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.prompt_format import ClozePrompt, PromptFormat
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT

SMOOTHING = 0.3  # added to the count of every place
BATCH = 256


@dataclass(frozen=True)
class PlacePrior:
    """Prior over places that ignores the name: additively smoothed frequencies of the train answers.

    q(place) = (count + 0.3) / (total + 0.3 (2 V)) with V different train answers. The factor 2 reserves
    probability for V further places that train lacks, each with count 0.
    """

    counts: Mapping[str, int]

    @classmethod
    def of(cls, corpus: Corpus) -> "PlacePrior":
        return cls(Counter(row.place for row in corpus.train.rows if row.place))

    def bits(self, place: str) -> float:
        """-log2 q(place)."""
        total = sum(self.counts.values()) + 2 * SMOOTHING * len(self.counts)
        return -math.log2((self.counts.get(place, 0) + SMOOTHING) / total)


@torch.no_grad()
def log_probabilities(
    model: GPT, vocab: CharVocab, prompts: Sequence[Sequence[int]], answers: Sequence[str]
) -> Tensor:
    """log P(answer and its closing MASK | prompt) of one answer for each prompt, (N), in nats.

    What does not fit into the block has probability 0, and so has an answer with unknown characters,
    PAD or MASK.

    Args:
        model: in evaluation mode, on any device.
    """
    encoded = [vocab.encode_known(answer) for answer in answers]
    targets = [[*ids, vocab.mask_id] for ids, _ in encoded]
    rows = [ClozePrompt([*prompt], target) for prompt, target in zip(prompts, targets, strict=True)]
    unknown = torch.tensor([bool(dropped) for _, dropped in encoded], dtype=torch.bool)
    return score_cloze_prompts(model, rows, vocab.pad_id)[0].masked_fill(unknown, -torch.inf)


@torch.no_grad()
def score_cloze_prompts(model: GPT, clozes: Sequence[ClozePrompt], pad_id: int) -> tuple[Tensor, Tensor]:
    """log P(target | prompt) in nats, and whether greedy decoding gives the target, both (N).

    What does not fit into the block has probability 0.

    Args:
        model: in evaluation mode, on any device.
    """
    device = model.tok_emb.weight.device
    scores = torch.full((len(clozes),), -torch.inf)
    greedy = torch.zeros(len(clozes), dtype=torch.bool)
    lengths = [len(prompt) + len(target) for prompt, target in clozes]
    order = sorted((i for i, n in enumerate(lengths) if n - 1 <= model.block_size), key=lengths.__getitem__)
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        width = lengths[batch[-1]]
        rows = [[*clozes[i].prompt, *clozes[i].target] + [pad_id] * (width - lengths[i]) for i in batch]
        ids = torch.tensor(rows, device=device)
        log_p = F.log_softmax(model(ids[:, :-1]).float(), -1)
        position = torch.arange(1, width, device=device)
        starts = torch.tensor([len(clozes[i].prompt) for i in batch], device=device)[:, None]
        ends = torch.tensor([lengths[i] for i in batch], device=device)[:, None]
        chosen = (position >= starts) & (position < ends)
        of_targets = log_p.gather(2, ids[:, 1:, None])[..., 0]
        scores[batch] = of_targets.where(chosen, 0.0).sum(1).cpu()
        greedy[batch] = ((log_p.argmax(-1) == ids[:, 1:]) | ~chosen).all(1).cpu()
    return scores, greedy


@dataclass(frozen=True)
class Recall:
    """What a model recalls of one fact in the form in which its text tells it.

    Attributes:
        log_p: log of the mean probability over the cloze prompts, nats.
        right: share of the cloze prompts that greedy decoding completes.

    Both are None if the text does not tell the fact within the block.
    """

    log_p: float | None
    right: float | None


def recall(
    model: GPT, vocab: CharVocab, form: PromptFormat, names: Sequence[str], answers: Sequence[str]
) -> list[Recall]:
    """What a model recalls of each answer about each name, in the form of its pretraining's text.

    The probabilities of several cloze prompts are averaged: the average is itself the probability of a
    predictor (a mixture), whereas the largest of them would favour facts with more wordings by chance.
    """
    clozes = [
        [
            cloze
            for cloze in form.cloze_prompts(*fact, vocab)
            if len(cloze.prompt) + len(cloze.target) <= model.block_size + 1
        ]
        for fact in zip(names, answers, strict=True)
    ]
    log_p, greedy = score_cloze_prompts(model, [cloze for row in clozes for cloze in row], vocab.pad_id)
    sizes = [len(row) for row in clozes]
    not_told = Recall(None, None)
    return [
        Recall(float(p.logsumexp(0)) - math.log(len(p)), float(g.float().mean())) if len(p) else not_told
        for p, g in zip(log_p.split(sizes), greedy.split(sizes), strict=True)
    ]


@dataclass(frozen=True)
class Bits:
    """Mean bits per person about the place, over the prior.

    Attributes:
        prior: -log2 q(place): what a model that knows every place has.
        extractable: log2 P(place | question) - log2 q(place); at most `prior`, 0 for the prior itself, and
            negative for a model that is worse than it.
        stored: the same after pretraining, in the form of its text, see `recall`; None if it has none.
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


def bits_about(prior: PlacePrior, places: Sequence[str], log_p: Sequence[float | None]) -> float:
    """The mean over people of log2 P(place) - log2 q(place); nothing is clipped.

    Args:
        log_p: log P of each place, in nats; None counts as the prior, 0 bits.
    """
    bits = [
        0.0 if p is None else p / math.log(2) + prior.bits(place)
        for place, p in zip(places, log_p, strict=True)
    ]
    return sum(bits) / max(1, len(bits))
