"""How sure a run is of its answers, alone and with its other seeds, and how sure its bits are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from birthplace_lm.analysis.knowledge.invented import pool_invented
from birthplace_lm.analysis.knowledge.result import Knowledge, Person, Signal
from birthplace_lm.errors import InputError
from birthplace_lm.inference.confidence import (
    auroc,
    bootstrap,
    brier,
    calibration_error,
    choose_threshold,
)
from birthplace_lm.inference.knowledge import Bits

PRECISION = 0.9  # of the answers that are given with abstention


def build_knowledge(people: list[Person], answers: int = 1, **measured: Any) -> Knowledge:
    """Add what follows from the answers to the other results of a run: confidences and intervals.

    Args:
        people: answers; those about one person are adjacent.
        answers: number of answers per person.
        measured: the remaining fields of `Knowledge`.
    """
    right = [person.right for person in people]
    surest = [person.log_p_answer for person in people]
    probabilities = [math.exp(score) for score in surest]
    halves: tuple[list[int], list[int]] = ([], [])  # by person
    for i in range(len(people)):
        halves[i // answers % 2].append(i)
    chosen = choose_threshold(
        [surest[i] for i in halves[0]], [right[i] for i in halves[0]], PRECISION, answers
    )
    answered = [right[i] for i in halves[1] if surest[i] >= chosen.score]
    return Knowledge(
        people=people,
        answers_per_person=answers,
        signals=signals(people, answers),
        brier=brier(probabilities, right),
        calibration=calibration_error(probabilities, right),
        calibration_interval=bootstrap(
            calibration_error, probabilities, right, answers_per_person=answers, biased=True
        ),
        threshold=chosen,
        abstention=(sum(answered), len(answered), len(halves[1])),
        bits_intervals=bits_intervals(people, answers),
        **measured,
    )


def bits_intervals(people: Sequence[Person], answers: int = 1) -> dict[str, tuple[float, float]]:
    """95 % intervals over people of the mean bits, and of the extraction gap.

    Args:
        answers: how many each person has, next to each other.

    Returns:
        By name, as in `Bits`; without those that the run does not have, or that are not finite.
    """
    extractable, stored = ([getattr(p, f"{kind}_bits") for p in people] for kind in ("extractable", "stored"))

    def mean(values: Sequence[float], _: Sequence[float]) -> float:
        return fmean(values)

    def gap(values: Sequence[float], others: Sequence[float]) -> float:
        return 1 - fmean(values) / fmean(others) if fmean(others) > 0 else math.nan

    intervals = {}
    if all(map(math.isfinite, extractable)):
        intervals["extractable"] = bootstrap(mean, extractable, extractable, answers_per_person=answers)
    if any(p.log_p_gold_text is not None for p in people) and all(map(math.isfinite, stored)):
        intervals["stored"] = bootstrap(mean, stored, stored, answers_per_person=answers)
        if "extractable" in intervals:
            intervals["gap"] = bootstrap(gap, extractable, stored, answers_per_person=answers)
    return intervals


def pool(runs: Sequence[Knowledge]) -> Knowledge:
    """Pool the answers of several runs about the same people; intervals are over people, not over answers.

    Raises:
        InputError: the runs ask about different people, differ in more than the seed, or have equal weights.
    """
    first = runs[0]
    if any([p.name for p in run.people] != [p.name for p in first.people] for run in runs):
        raise InputError("--pool: the runs are asked about different people")
    if any(run.setting != first.setting for run in runs):
        raise InputError("--pool: the runs differ in more than the seed; pool seeds of one setting")
    by_weights: dict[str, Knowledge] = {}
    for run in runs:
        if (same := by_weights.setdefault(run.weights, run)) is not run:
            raise InputError(f"--pool: {same.run} and {run.run} have equal weights; a copy is no other seed")
    stored = [run.bits.stored for run in runs if run.bits.stored is not None]
    invented = [run.invented for run in runs if run.invented is not None]
    pooled = build_knowledge(
        [person for answers in zip(*(run.people for run in runs), strict=True) for person in answers],
        answers=len(runs),
        run=f"{len(runs)} runs",
        setting=first.setting,
        weights=" ".join(by_weights),
        label=f"{first.label.partition(', seed ')[0]}, {len(runs)} seeds",
        bits=Bits(
            first.bits.prior,
            sum(run.bits.extractable for run in runs) / len(runs),
            sum(stored) / len(stored) if len(stored) == len(runs) else None,
        ),
        parameters=first.parameters,
        seconds=sum(run.seconds for run in runs),
        candidates=round(sum(run.candidates for run in runs) / len(runs)),
        elsewhere=sum(run.elsewhere for run in runs) / len(runs),
        invented=pool_invented(invented) if len(invented) == len(runs) else None,
    )
    if len(runs) == 1:
        return pooled
    right = [person.right for person in pooled.people]
    votes = [vote for answers in zip(*(_votes(run, runs) for run in runs), strict=True) for vote in answers]
    signal = Signal(auroc(votes, right), *bootstrap(auroc, votes, right, answers_per_person=len(runs)))
    return replace(pooled, signals=pooled.signals | {"agreement with the other seeds": signal})


def signals(people: Sequence[Person], answers: int = 1) -> dict[str, Signal]:
    """Every confidence of single answers; higher means surer.

    Args:
        answers: how many each person has, next to each other.
    """
    values: dict[str, list[float]] = {
        "log-probability of the answer": [p.log_p_answer for p in people],
        "the same per character": [p.log_p_answer / (len(p.answer) + 1) for p in people],
        "entropy over places and answers (negative)": [-p.entropy for p in people],
        "margin of the two likeliest": [p.margin for p in people],
    }
    if all(p.text_log_p_answer is not None for p in people):
        values["log-probability in the other wording"] = [p.text_log_p_answer or 0.0 for p in people]
    right = [person.right for person in people]
    return {
        name: Signal(auroc(scores, right), *bootstrap(auroc, scores, right, answers_per_person=answers))
        for name, scores in values.items()
    }


def agreement(runs: Sequence[Knowledge]) -> dict[str, Signal]:
    """AUROC of the agreement with other seeds, for each run that has other seeds of its setting.

    The confidence of an answer is the number of other seeds that give the same answer; of runs with equal
    weights one counts.

    Returns:
        The signals by the name of the run; runs without other seeds are left out.
    """
    signals_by_run = {}
    for knowledge in runs:
        seeds = {run.weights: run for run in runs if run.setting == knowledge.setting}
        seeds[knowledge.weights] = knowledge
        if len(seeds) == 1:
            continue
        votes = _votes(knowledge, [*seeds.values()])
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
