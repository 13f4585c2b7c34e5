"""Results of the knowledge study: one person, one confidence signal, and one run."""

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
        recalled: share of the cloze prompts that greedy decoding then completes; None if the text has none.
        entropy: of the exact distribution over the places of train and "something else", nats.
        margin: difference of the two largest probabilities of places.
        text_log_p_answer: log P(answer | the name in the form of the text), nats, or None.
        origin: where the answer comes from, see `origin`.
        lenient: right in some sense, see `origin.is_right_in_some_sense`.
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
    replaced: bool
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
        setting: a hash of what determines the run, but for the seed.
        weights: a hash of them, by which a copy of a run is told from another seed.
        label: its attention, pretraining, corpus and seed, in words.
        people: one entry for each dev question, or one for each run next to each other.
        answers_per_person: how many runs these are.
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
    setting: str
    weights: str
    label: str
    people: list[Person]
    answers_per_person: int
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


def interval(right: int, total: int, answers_per_person: int = 1) -> str:
    """A share of answers in percent with the 95 % Wilson interval over people."""
    if total == 0:
        return "-"
    low, high = wilson(right / answers_per_person, total / answers_per_person)
    return f"{right / total:.1%} ({low:.1%} to {high:.1%})"
