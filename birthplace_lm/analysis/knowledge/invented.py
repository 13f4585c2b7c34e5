"""Invented people: does a model answer about somebody unknown with the place of a similar name?"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from birthplace_lm.analysis.knowledge.origin import name_parts
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.prompt_format import own_lines
from birthplace_lm.inference.confidence import auroc
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.inference.language_model import TrainedModel

COUNT = 1000
MIN_NAMES = 50  # names that a corpus must have the parts for
MAX_PEOPLE = 5000  # people to compare with, evenly spaced; all of a large corpus take too long
BATCH = 256


@dataclass(frozen=True)
class Similarity:
    """How often an answer is the place of a similar person that the model has read about.

    Attributes:
        matches: number of such answers. If several people are equally similar, an answer counts as the
            fraction of them who have this place.
        total: number of invented people who have a similar person.
        chance: expected fraction of matches with a person drawn at random instead.
    """

    matches: float
    total: int
    chance: float


@dataclass(frozen=True)
class Invented:
    """What a model answers about invented people: given names and surnames of the corpus, newly combined.

    Attributes:
        names, answers: of the invented people.
        places: share of the answers that are places of train.
        similar: by the kind of similarity.
        auroc: how well the probability of the answer tells dev people from invented ones.
    """

    names: list[str]
    answers: list[str]
    places: float
    similar: dict[str, Similarity]
    auroc: float


def ask_about_invented(
    trained: TrainedModel, corpus: Corpus, dev_scores: Sequence[float], count: int = COUNT
) -> Invented | None:
    """Ask about invented people; None if fewer than MIN_NAMES names can be combined from those of the corpus.

    Args:
        dev_scores: log-probability of the answer about each dev person, in nats.
        count: number of invented people; fewer if the corpus does not have enough names to combine.
    """
    template = corpus.question
    names = invent_names(corpus, count)
    if len(names) < MIN_NAMES:
        return None
    model, vocab = trained.model, trained.vocab
    questions = [template.about(name) for name in names]
    answers = answer_questions(model, vocab, questions)
    texts = [answer.text for answer in answers]
    people = people_read_about(corpus)
    counts = Counter(place for _, place in people)
    chance = [counts[text] / len(people) for text in texts]
    compared = people[:: math.ceil(len(people) / MAX_PEOPLE)]
    others = [name for name, _ in compared]
    places = [place for _, place in compared]
    edit = edit_distances(names, others)
    states = name_states(trained, names) @ name_states(trained, others).T
    first, last = ([name_parts(name)[end] for name in names] for end in (0, 1))
    parts_of_others = [name_parts(name) or ["", ""] for name in others]
    same_first = np.array([[part == other[0] for other in parts_of_others] for part in first])
    same_last = np.array([[part == other[1] for other in parts_of_others] for part in last])
    train_places = {row.place for row in corpus.train.rows}
    is_answer = np.array([[place == text for place in places] for text in texts])
    close = states.numpy() >= states.amax(1, keepdim=True).numpy()
    similar = {
        "nearest name by edit distance": edit == edit.min(1, keepdims=True),
        "nearest name by the model's own state": close,
        "a person with the same surname": same_last,
        "a person with the same given name": same_first,
    }
    return Invented(
        names=names,
        answers=texts,
        places=sum(text in train_places for text in texts) / len(texts),
        similar={kind: _similarity(chosen, is_answer, chance) for kind, chosen in similar.items()},
        auroc=auroc(
            [*dev_scores, *(answer.log_probability for answer in answers)],
            [True] * len(dev_scores) + [False] * len(answers),
        ),
    )


def people_read_about(corpus: Corpus) -> list[tuple[str, str]]:
    """Name and gold place of everybody that the corpus has a line about, and of the train people.

    The places of a test split may be unknown; a line may be left out by `data.exclude`.
    """
    lines = own_lines(corpus.documents.training_lines, corpus.names)
    others = [split.rows for split in (corpus.dev, corpus.test) if split is not None]
    rows = [*corpus.train.rows, *(row for rows in (*others, corpus.holdout) for row in rows)]
    trained = {row.question for row in corpus.train.rows}
    people = [(corpus.question.name_or_text(row.question), row) for row in rows if row.place]
    return [(name, row.place or "") for name, row in people if name in lines or row.question in trained]


def pool_invented(runs: Sequence[Invented]) -> Invented:
    """The answers of several runs as those of one."""
    similar = {}
    for kind in runs[0].similar:
        by_run = [run.similar[kind] for run in runs]
        total = sum(similarity.total for similarity in by_run)
        chance = sum(similarity.chance * similarity.total for similarity in by_run) / max(1, total)
        similar[kind] = Similarity(sum(similarity.matches for similarity in by_run), total, chance)
    return Invented(
        names=[name for run in runs for name in run.names],
        answers=[answer for run in runs for answer in run.answers],
        places=sum(run.places for run in runs) / len(runs),
        similar=similar,
        auroc=sum(run.auroc for run in runs) / len(runs),
    )


def _similarity(
    chosen: NDArray[np.bool_], is_answer: NDArray[np.bool_], chance: Sequence[float]
) -> Similarity:
    """Args: chosen, is_answer: (invented, people): similar people, and those whose place is the answer."""
    counts = chosen.sum(1)
    rows = counts > 0
    matches = ((chosen & is_answer).sum(1)[rows] / counts[rows]).sum()
    mean_chance = float(np.asarray(chance)[rows].mean()) if rows.any() else 0.0
    return Similarity(float(matches), int(rows.sum()), mean_chance)


def invent_names(corpus: Corpus, count: int, seed: int = 0) -> list[str]:
    """Up to `count` new names, from the first word of one name of the corpus and the last word of another.

    A combination that a name or the text of the corpus has is left out.
    """
    files = [split for split in (corpus.train, corpus.dev, corpus.test) if split is not None]
    rows = [*(row for file in files for row in file.rows), *corpus.holdout]
    names = sorted({corpus.question.name_or_text(row.question) for row in rows})
    parts = [name_parts(name) for name in names if name_parts(name)]
    first, last = (sorted({part[end] for part in parts}) for end in (0, 1))
    draw = random.Random(seed)
    text, pairs = corpus.documents.text, {tuple(part) for part in parts}
    invented: dict[str, None] = {}
    for _ in range(20 * count):
        if not parts or len(invented) == count:
            break
        pair = first[int(draw.random() * len(first))], last[int(draw.random() * len(last))]
        if pair not in pairs and (name := " ".join(pair)) not in text:
            invented[name] = None
    return [*invented]


def edit_distances(names: Sequence[str], others: Sequence[str]) -> NDArray[np.int64]:
    """Levenshtein distances (names, others)."""
    width = max(map(len, others))
    lengths = np.array([len(other) for other in others])
    codes = np.array([[ord(c) for c in other.ljust(width, "\0")] for other in others]).T  # (width, others)
    rows = []
    for name in names:
        previous = np.tile(np.arange(width + 1)[:, None], len(others))  # (width + 1, others)
        for i, character in enumerate(name, 1):
            row = np.empty_like(previous)
            row[0] = i
            replaced = previous[:-1] + (codes != ord(character))
            deleted = previous[1:] + 1
            for j in range(1, width + 1):
                np.minimum(replaced[j - 1], deleted[j - 1], out=row[j])
                np.minimum(row[j], row[j - 1] + 1, out=row[j])
            previous = row
        rows.append(previous[lengths, np.arange(len(others))])
    return np.stack(rows)


@torch.no_grad()
def name_states(trained: TrainedModel, names: Sequence[str]) -> Tensor:
    """Unit vectors (N, C): the output of the middle block at the last character of the name in a question.

    If the middle block outputs latent vectors, the next block that outputs characters is used.
    """
    model, vocab, template = trained.model, trained.vocab, trained.question
    device = model.tok_emb.weight.device
    prefixes = [vocab.encode_known(vocab.replace_unknown(template.prefix + name))[0] for name in names]
    prefixes = [ids[: model.block_size] for ids in prefixes]
    states = torch.zeros(len(names), model.tok_emb.embedding_dim)
    blocks = list(model.blocks)[(model.n_layer - 1) // 2 :]
    block = next(block for block in blocks if not block.latent_queries)
    outputs: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        for start in range(0, len(names), BATCH):
            batch = prefixes[start : start + BATCH]
            width = max(map(len, batch))
            model(torch.tensor([ids + [vocab.pad_id] * (width - len(ids)) for ids in batch], device=device))
            last = torch.tensor([len(ids) - 1 for ids in batch])
            states[start : start + BATCH] = outputs.pop()[torch.arange(len(batch)), last].float().cpu()
    finally:
        handle.remove()
    return torch.nn.functional.normalize(states, dim=1)
