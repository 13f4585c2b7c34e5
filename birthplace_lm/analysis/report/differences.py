"""How much exact match differs from that of a reference setting, and how sure the difference is.

All settings answer the same people, so the differences are taken person by person: two settings that fail for
the same people are compared more precisely than their separate intervals show.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from birthplace_lm.analysis.report.answers import UNREADABLE, answers_on_dev
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.groups import group_by_settings, without_copies
from birthplace_lm.analysis.report.settings import Setting, labels, shown_settings
from birthplace_lm.analysis.report.tables import plain
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.errors import InputError

SHOWN = 5  # settings that an error names, and runs that notes name
Answers = Sequence[Sequence[bool]]  # seeds x people: whether the answer is right


@dataclass(frozen=True)
class Difference:
    """A difference of mean exact match.

    Attributes:
        mean: in [-1, 1]; negative where the reference has more right answers.
        standard_error: over people, and over trainings if there are several seeds.
    """

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {200 * self.standard_error:.1f}"


@dataclass(frozen=True)
class Differences:
    """The differences of the settings of runs from a reference.

    Attributes:
        reference: label of the reference.
        of: for each run the difference of its setting; without the runs of the reference, and without those
            that cannot be compared.
        failures: why runs cannot be compared.
    """

    reference: str = ""
    of: Mapping[Run, Difference] = field(default_factory=dict)
    failures: Sequence[str] = ()


def paired_difference(first: Answers, second: Answers) -> Difference:
    """The mean difference of two settings that answer the same people, with its standard error.

    People and seeds are both samples. The variance is that of the person-wise differences of the means over
    seeds, divided by the number of people, and what the means of the seeds vary beyond that: for each side
    its variance over seeds less the part that comes from people and seeds together, divided by the number of
    seeds. This is the usual estimate for two crossed random factors. With one seed on each side it is the
    standard error of McNemar's test.

    Args:
        first, second: seeds x people, in the same order of people; one seed or more, two people or more.
    """
    ours, theirs = _means(first), _means(second)
    people = len(ours)
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = fmean(each)
    variance = sum((value - mean) ** 2 for value in each) / (people - 1) / people
    variance += _variance_of_seeds(first) + _variance_of_seeds(second)
    return Difference(mean, math.sqrt(variance))


def _means(answers: Answers) -> list[float]:
    """For each person the mean over seeds."""
    return [sum(of_person) / len(answers) for of_person in zip(*answers, strict=True)]


def _variance_of_seeds(answers: Answers) -> float:
    """The part of the variance of a mean that seeds add to that of people; 0 with one seed."""
    seeds, people = len(answers), len(answers[0])
    if seeds == 1:
        return 0.0
    of_person, of_seed = _means(answers), [sum(row) / people for row in answers]
    mean = fmean(of_seed)
    between = sum((value - mean) ** 2 for value in of_seed) / (seeds - 1)
    interaction = sum(
        (answer - of_person[i] - of_seed[s] + mean) ** 2
        for s, row in enumerate(answers)
        for i, answer in enumerate(row)
    ) / ((seeds - 1) * (people - 1))
    return max(0.0, between - interaction / people) / seeds


def differences(runs: Sequence[Run], reference: Sequence[str] = ()) -> Differences:
    """Compare each setting with a reference.

    Args:
        reference: the settings of the reference, each as NAME=VALUE; by default it is the best setting.

    Raises:
        InputError: not exactly one setting is the reference.
    """
    settings = shown_settings(runs)
    groups = [*group_by_settings(without_copies(runs), settings).values()]
    if len(groups) < 2 and not reference:
        return Differences()
    names = labels(runs)
    first = _reference(groups, settings, names, reference)
    answers: dict[Run, list[tuple[Question, str]]] = {}
    failures = []
    for run in [run for group in groups for run in group]:
        try:
            answers[run] = _answers(run)
        except UNREADABLE as error:
            failures.append(f"{plain(run.path)} is not compared: {plain(error)}.")
    if len(failures) > SHOWN:
        failures = [*failures[:SHOWN], f"{len(failures) - SHOWN} more runs are not compared."]
    compared: dict[Run, Difference] = {}
    for group in groups:
        both = [*first, *group]
        if group is first or any(run not in answers for run in both):
            continue
        questions = {tuple(question for question, _ in answers[run]) for run in both}
        if len(questions) == 1 and len(answers[first[0]]) > 1:  # of one corpus, several people
            right = {run: [answer == row.place for row, answer in answers[run]] for run in both}
            difference = paired_difference([right[run] for run in group], [right[run] for run in first])
            compared |= dict.fromkeys(group, difference)
    return Differences(names[first[0]], compared, failures)


def _answers(run: Run) -> list[tuple[Question, str]]:
    answers = answers_on_dev(run)
    right = sum(answer == question.place for question, answer in answers)
    if run.dev and right != run.dev.correct:
        raise ValueError(f"{right} of its predictions are right, not {run.dev.correct}")
    return answers


def _reference(
    groups: Sequence[list[Run]],
    settings: Sequence[Setting],
    names: Mapping[Run, str],
    chosen: Sequence[str],
) -> list[Run]:
    """The runs of the reference; of the best setting, which is the first, if none is chosen."""

    def has(run: Run, name: str, value: str) -> bool:
        keys = [
            key
            for setting in settings
            for key, short in zip(setting.keys, setting.names, strict=True)
            if name in (key, short)
        ]
        return any(value in (run.value(key), run.display(key)) for key in keys)

    wanted = [text.partition("=")[::2] for text in chosen]
    matching = [group for group in groups if all(has(group[0], *pair) for pair in wanted)]
    if matching and (len(matching) == 1 or not chosen):
        return matching[0]
    option = " ".join(f"--reference {text}" for text in chosen)
    which = "; ".join(names[group[0]] for group in (matching or groups)[:SHOWN])
    if matching:
        keys = ", ".join(name for setting in settings for name in setting.names[:1])
        raise InputError(
            f"{option}: {len(matching)} settings are so ({which}); give one of them with more of {keys}"
        )
    raise InputError(f"{option}: no setting of finished runs is so; there are: {which or 'none'}")
