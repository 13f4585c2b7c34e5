"""Results of the knowledge study: one person, one confidence signal, and one run."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from birthplace_lm.analysis.knowledge.invented import Invented
from birthplace_lm.inference.confidence import Threshold, risk_coverage
from birthplace_lm.inference.knowledge import Bits
from birthplace_lm.runs.metrics import wilson


@dataclass(frozen=True)
class Person:
    """One dev question and what the model makes of it.

    Attributes:
        name, gold, answer: of the person; the answer is the greedy one.
        log_p_answer: log P(answer | question), nats.
        log_p_gold: log P(gold | question), nats.
        log_p_gold_text: the same after pretraining, in the form of its text, see `recall`; or None.
        prior_bits: -log2 of the prior of the gold place, see `PlacePrior`.
        recalled: share of the cloze prompts that greedy decoding then completes; None if the text has none.
        entropy: of the exact distribution over the candidates, which are the places of train and the greedy
            answers of all people, and "something else", nats. A lower bound of the entropy over all texts.
        margin: difference of the two largest probabilities of candidates.
        text_log_p_answer: log P(answer | the name in the form of the text), nats, or None.
        origin: where the answer comes from, see `origin`.
        lenient: right in some sense, see `origin.is_right_in_some_sense`.
        misspelled: wrong, see `origin.is_misspelled`.
        position: of the gold place in the person's own line, or None.
        frequency: of the gold place among the train answers.
        lines: how many lines are about the person.
        repetitions: of the surname in them.
        replaced: the gold place is that of `data.replace`.
        guessable: the gold place is among the three likeliest for the given name or the surname alone.
    """

    name: str
    gold: str
    answer: str
    log_p_answer: float
    log_p_gold: float
    log_p_gold_text: float | None
    prior_bits: float
    recalled: float | None
    entropy: float
    margin: float
    text_log_p_answer: float | None
    origin: str
    lenient: bool
    misspelled: bool
    position: int | None
    frequency: int
    lines: int
    repetitions: int
    replaced: bool
    guessable: bool

    @property
    def right(self) -> bool:
        return self.answer == self.gold

    @property
    def extractable_bits(self) -> float:
        """log2 P(gold | question) over the prior."""
        return self.log_p_gold / math.log(2) + self.prior_bits

    @property
    def stored_bits(self) -> float:
        """The same after pretraining, in the form of its text; 0 if the text does not tell the place."""
        return 0.0 if self.log_p_gold_text is None else self.log_p_gold_text / math.log(2) + self.prior_bits


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
        setting: a hash of what determines the run, but for the seed.
        weights: a hash of them, by which a copy of a run is told from another seed.
        label: its attention, pretraining, corpus and seed, in words.
        people: one entry for each dev question, or one for each run next to each other.
        answers_per_person: how many runs these are.
        bits: mean bits per person.
        bits_intervals: of `stored`, `extractable` and `gap`, where there are such bits; 95 %, over people.
        parameters: trainable weights.
        signals: by the name of the confidence.
        brier, calibration, calibration_interval: of the probability of the greedy answer.
        threshold: chosen on every second dev row, for a precision of 90 %.
        abstention: right answers, answers given and questions of the other rows.
        seconds: of scoring all candidates for all questions.
        candidates: how many were scored.
        elsewhere: mean probability of all texts that are no candidates.
        invented: what is answered about invented people; None if there can be none.
    """

    run: str
    setting: str
    weights: str
    label: str
    people: list[Person]
    answers_per_person: int
    bits: Bits
    bits_intervals: dict[str, tuple[float, float]]
    parameters: int
    signals: dict[str, Signal]
    brier: float
    calibration: float
    calibration_interval: tuple[float, float]
    threshold: Threshold
    abstention: tuple[int, int, int]
    seconds: float
    candidates: int
    elsewhere: float
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


def interval(right: float, total: int, answers_per_person: int = 1) -> str:
    """A share of answers in percent with the 95 % Wilson interval over people."""
    if total == 0:
        return "-"
    low, high = wilson(right / answers_per_person, total / answers_per_person)
    return f"{right / total:.1%} ({low:.1%} to {high:.1%})"
