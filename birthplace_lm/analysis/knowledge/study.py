"""Everything about what a trained model knows that needs no further training."""

import math
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from torch import Tensor

from birthplace_lm.analysis.knowledge import origin
from birthplace_lm.analysis.knowledge.invented import Invented, ask_about_invented, pool_invented
from birthplace_lm.config.compose import load_saved
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.text_form import MaskedForm, TextForm, own_lines
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.closed_answers import answer_log_probabilities
from birthplace_lm.inference.confidence import (
    Threshold,
    auroc,
    bootstrap,
    brier,
    calibration_error,
    choose_threshold,
    risk_coverage,
    wilson,
)
from birthplace_lm.inference.decoding import answer_questions, question_prompt
from birthplace_lm.inference.knowledge import (
    Bits,
    PlacePrior,
    bits_about,
    log_probabilities,
    recall,
)
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.runs.auto_precision import faster_library

PRECISION = 0.9  # of the answers that are given with abstention
GUESSABLE_RANK = 3  # as in LAMA-UHN: the gold place among so many likeliest ones for a part of the name


@dataclass(frozen=True)
class Person:
    """One dev question and what the model makes of it.

    Attributes:
        name, gold, answer: of the person; the answer is the greedy one.
        log_p_answer: log P(answer | question), nats.
        log_p_gold: log P(gold | question), nats.
        log_p_gold_text: the same after pretraining, where the text tells it, see `recall`; or None.
        recalled: share of the tellings that greedy decoding then completes; None if the text has none.
        entropy: of the exact distribution over the places of train and "something else", nats.
        margin: difference of the two largest probabilities of places.
        text_log_p_answer: log P(answer | the name in the form of the text), nats, or None.
        origin: where the answer comes from, see `origin`.
        lenient: right in some sense, see `origin.is_right_in_some_sense`.
        position: of the gold place in the person's own line, or None.
        frequency: of the gold place among the train answers.
        lines: how many lines are about the person.
        repetitions: of the surname in them.
        guessable: the gold place is among the three likeliest for the given name or the surname alone.
    """

    name: str
    gold: str
    answer: str
    log_p_answer: float
    log_p_gold: float
    log_p_gold_text: float | None
    recalled: float | None
    entropy: float
    margin: float
    text_log_p_answer: float | None
    origin: str
    lenient: bool
    position: int | None
    frequency: int
    lines: int
    repetitions: int
    guessable: bool

    @property
    def right(self) -> bool:
        return self.answer == self.gold


@dataclass(frozen=True)
class Signal:
    """How well one confidence tells right answers from wrong ones: AUROC with its 95 % interval."""

    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class Knowledge:
    """What one run knows about the dev people.

    Attributes:
        run: the hash in the name of its directory, or that name.
        people: one entry for each dev question.
        bits: mean bits per person.
        parameters: trainable weights.
        signals: by the name of the confidence.
        brier, calibration, calibration_interval: of the probability of the greedy answer.
        threshold: chosen on every second dev row, for a precision of 90 %.
        abstention: precision and coverage on the other rows.
        seconds: of scoring all places for all questions.
        places: how many were scored.
        invented: what is answered about invented people; None if there can be none.
    """

    run: str
    people: list[Person]
    bits: Bits
    parameters: int
    signals: dict[str, Signal]
    brier: float
    calibration: float
    calibration_interval: tuple[float, float]
    threshold: Threshold
    abstention: tuple[float, float]
    seconds: float
    places: int
    invented: Invented | None

    @property
    def people_count(self) -> int:
        """How many people."""
        return len({person.name for person in self.people})

    @property
    def exact_match(self) -> float:
        return sum(person.right for person in self.people) / len(self.people)

    @property
    def risks(self) -> list[float]:
        """Share of wrong answers among the k surest, for k = 1 ... all."""
        right = [person.right for person in self.people]
        return risk_coverage([person.log_p_answer for person in self.people], right).tolist()

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"exact_match": self.exact_match}


def study(run: Path, plugins: Collection[str] = ()) -> Knowledge:
    """Measure a finished run on its dev questions.

    Args:
        run: a run directory or an export whose data files are still there.
        plugins: packages whose classes its configuration may name.

    Raises:
        CheckpointError: the files of the corpus have changed since.
        InputError: the run, or its corpus, cannot be read.
    """
    config = load_saved(run / "config.yaml", plugins)
    corpus = read_corpus(config.data, config.model.block_size)
    if any(corpus.sha256.get(key) != value for key, value in config.inputs.items() if key in corpus.sha256):
        raise CheckpointError(
            f"{run}: the files of its corpus have changed; restore them, or name another run"
        )
    trained = TrainedModel.from_run(run, plugins)
    pretrain = config.stages.pretrain
    text_form = None
    if pretrain.enabled:
        data_module: Any = get_class(pretrain.dataset._target_)
        text_form = data_module.text_form_of(pretrain.dataset, corpus)
    hashed = re.search(r"-([0-9a-f]{8})$", run.resolve().name)
    name = hashed[1] if hashed else run.resolve().name
    pretrained = TrainedModel.from_run(run, plugins, stage="pretrain") if text_form else None
    with float32_products(faster_library(config.model.n_embd)):
        return study_model(name, trained, corpus, text_form, pretrained)


def study_model(
    name: str,
    trained: TrainedModel,
    corpus: Corpus,
    text_form: TextForm | None,
    pretrained: TrainedModel | None = None,
) -> Knowledge:
    """Measure a model on the dev questions of a corpus.

    Args:
        name: of the run.
        text_form: how the text of pretraining tells a place; None if it does not.
        pretrained: the model after pretraining, which recalls the text; None: `trained`.
    """
    model, vocab, template = trained.model, trained.vocab, corpus.question
    rows = [row for row in corpus.dev.rows if row.place]
    if not rows:
        raise InputError(f"{name}: its dev questions have no places")
    questions, golds = [row.question for row in rows], [row.place or "" for row in rows]
    names = [template.name_in(question) or question for question in questions]
    prior = PlacePrior.of(corpus)
    places = sorted(prior.counts)

    answers = answer_questions(model, vocab, [vocab.replace_unknown(question) for question in questions])
    question_prompts = [
        question_prompt(model, vocab, vocab.replace_unknown(question)) for question in questions
    ]
    began = time.perf_counter()
    log_p = answer_log_probabilities(model, vocab, question_prompts, places).double()
    seconds = time.perf_counter() - began
    gold_log_p = log_probabilities(model, vocab, question_prompts, golds).tolist()
    reader = (pretrained or trained).model
    recalled = None if text_form is None else recall(reader, vocab, text_form, names, golds)
    answer_log_p = None
    if isinstance(text_form, MaskedForm):  # a line up to the place tells more than the name does
        recalls = recall(model, vocab, text_form, names, [answer.text for answer in answers])
        answer_log_p = [-math.inf if one.log_p is None else one.log_p for one in recalls]
    guessable = _guessable(trained, corpus, names, golds, places)
    lines = own_lines(corpus.documents.training_lines)
    top = log_p.exp().topk(min(2, len(places)), 1).values
    people = [
        Person(
            name=names[i],
            gold=golds[i],
            answer=answers[i].text,
            log_p_answer=answers[i].log_probability,
            log_p_gold=gold_log_p[i],
            log_p_gold_text=None if recalled is None else recalled[i].log_p,
            recalled=None if recalled is None else recalled[i].right,
            entropy=_entropy(log_p[i]),
            margin=float(top[i, 0] - top[i, -1]),
            text_log_p_answer=None if answer_log_p is None else answer_log_p[i],
            origin=origin.origin(answers[i].text, lines.get(names[i], []), prior.counts),
            lenient=origin.is_right_in_some_sense(answers[i].text, golds[i], lines.get(names[i], [])),
            position=origin.fact_position(golds[i], lines.get(names[i], [])),
            frequency=prior.counts.get(golds[i], 0),
            lines=len(lines.get(names[i], [])),
            repetitions=origin.repetitions(names[i], lines.get(names[i], [])),
            guessable=guessable[i],
        )
        for i in range(len(rows))
    ]
    bits = Bits(
        prior=sum(map(prior.bits, golds)) / len(golds),
        extractable=bits_about(prior, golds, gold_log_p),
        stored=None if recalled is None else bits_about(prior, golds, [one.log_p for one in recalled]),
    )
    invented = ask_about_invented(trained, corpus, [answer.log_probability for answer in answers])
    return _with_confidence(name, people, bits, model.num_parameters, seconds, len(places), invented)


def _with_confidence(
    name: str,
    people: list[Person],
    bits: Bits,
    parameters: int,
    seconds: float,
    places: int,
    invented: Invented | None,
    answers: int = 1,
) -> Knowledge:
    """Args: answers: how many each person has, next to each other."""
    right = [person.right for person in people]
    surest = [person.log_p_answer for person in people]
    probabilities = [math.exp(score) for score in surest]
    halves: tuple[list[int], list[int]] = ([], [])  # by person
    for i in range(len(people)):
        halves[i // answers % 2].append(i)
    chosen = choose_threshold([surest[i] for i in halves[0]], [right[i] for i in halves[0]], PRECISION)
    answered = [right[i] for i in halves[1] if surest[i] >= chosen.score]
    return Knowledge(
        run=name,
        people=people,
        bits=bits,
        parameters=parameters,
        signals=signals(people, answers),
        brier=brier(probabilities, right),
        calibration=calibration_error(probabilities, right),
        calibration_interval=bootstrap(calibration_error, probabilities, right, answers_per_person=answers),
        threshold=chosen,
        abstention=(
            sum(answered) / len(answered) if answered else math.nan,
            len(answered) / max(1, len(halves[1])),
        ),
        seconds=seconds,
        places=places,
        invented=invented,
    )


def pool(runs: Sequence[Knowledge]) -> Knowledge:
    """Several runs about the same people as one: each answer counts, and intervals are over people.

    Raises:
        InputError: the runs are about other people, or have other sizes.
    """
    first = runs[0]
    if any([p.name for p in run.people] != [p.name for p in first.people] for run in runs):
        raise InputError("--pool: the runs are asked about different people")
    if any(run.parameters != first.parameters for run in runs):
        raise InputError("--pool: the runs have different sizes; pool seeds of one setting")
    stored = [run.bits.stored for run in runs if run.bits.stored is not None]
    invented = [run.invented for run in runs if run.invented is not None]
    pooled = _with_confidence(
        f"{len(runs)} runs",
        [person for answers in zip(*(run.people for run in runs), strict=True) for person in answers],
        Bits(
            first.bits.prior,
            sum(run.bits.extractable for run in runs) / len(runs),
            sum(stored) / len(stored) if len(stored) == len(runs) else None,
        ),
        first.parameters,
        sum(run.seconds for run in runs),
        first.places,
        pool_invented(invented) if len(invented) == len(runs) else None,
        len(runs),
    )
    if len(runs) == 1:
        return pooled
    right = [person.right for person in pooled.people]
    votes = [vote for answers in zip(*(_votes(run, runs) for run in runs), strict=True) for vote in answers]
    signal = Signal(auroc(votes, right), *bootstrap(auroc, votes, right, answers_per_person=len(runs)))
    return replace(pooled, signals=pooled.signals | {"agreement with the other runs": signal})


def signals(people: Sequence[Person], answers: int = 1) -> dict[str, Signal]:
    """Every confidence of single answers; higher means surer.

    Args:
        answers: how many each person has, next to each other.
    """
    values: dict[str, list[float]] = {
        "log-probability of the answer": [p.log_p_answer for p in people],
        "the same per character": [p.log_p_answer / (len(p.answer) + 1) for p in people],
        "exact entropy over all places (negative)": [-p.entropy for p in people],
        "margin of the two likeliest places": [p.margin for p in people],
    }
    if all(p.text_log_p_answer is not None for p in people):
        values["log-probability in the other wording"] = [p.text_log_p_answer or 0.0 for p in people]
    right = [person.right for person in people]
    return {
        name: Signal(
            auroc(scores, right), *bootstrap(auroc, _finite(scores), right, answers_per_person=answers)
        )
        for name, scores in values.items()
    }


def agreement(runs: Sequence[Knowledge]) -> dict[str, Signal]:
    """For each of several runs about the same people: how many of the others give the same answer."""
    signals_by_run = {}
    for knowledge in runs:
        votes = _votes(knowledge, runs)
        right = [person.right for person in knowledge.people]
        signals_by_run[knowledge.run] = Signal(auroc(votes, right), *bootstrap(auroc, votes, right))
    return signals_by_run


def _votes(knowledge: Knowledge, runs: Sequence[Knowledge]) -> list[float]:
    """For each person, how many of the other runs give the same answer."""
    others = [[p.answer for p in other.people] for other in runs if other is not knowledge]
    return [
        float(sum(answers[i] == person.answer for answers in others))
        for i, person in enumerate(knowledge.people)
    ]


def interval(right: int, total: int) -> str:
    """A share in percent with its 95 % Wilson interval."""
    if total == 0:
        return "-"
    low, high = wilson(right, total)
    return f"{right / total:.1%} ({low:.0%} to {high:.0%})"


def _entropy(log_p: Tensor) -> float:
    """Of the probabilities of all places and of everything else, nats."""
    p = log_p.exp()
    rest = (1 - p.sum()).clamp(min=0)
    return float(torch.special.entr(p).sum() + torch.special.entr(rest))


def _finite(scores: Sequence[float]) -> list[float]:
    return np.nan_to_num(np.asarray(scores, float), neginf=-1e9).tolist()


def _guessable(
    trained: TrainedModel, corpus: Corpus, names: Sequence[str], golds: Sequence[str], places: Sequence[str]
) -> list[bool]:
    """Whether the gold place is among the likeliest for a part of the name alone, or stands in the name."""
    parts = [(i, part) for i, name in enumerate(names) for part in origin.name_parts(name)]
    result = [gold in name for gold, name in zip(golds, names, strict=True)]
    if not parts:
        return result
    distinct = sorted({part for _, part in parts})
    prompts = [
        question_prompt(trained.model, trained.vocab, corpus.question.about(part)) for part in distinct
    ]
    log_p = answer_log_probabilities(trained.model, trained.vocab, prompts, places)
    best = log_p.topk(min(GUESSABLE_RANK, len(places)), 1).indices.tolist()
    likeliest = {part: {places[j] for j in row} for part, row in zip(distinct, best, strict=True)}
    for i, part in parts:
        result[i] = result[i] or golds[i] in likeliest[part]
    return result
