"""Tables of what runs know, and a page with them and their figures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from birthplace_lm.analysis.html_page import escape, html_table, inline_svg, new_figure, write_html
from birthplace_lm.analysis.knowledge import origin
from birthplace_lm.analysis.knowledge.confidences import PRECISION, agreement
from birthplace_lm.analysis.knowledge.invented import Invented
from birthplace_lm.analysis.knowledge.result import Knowledge, Person, Signal, interval
from birthplace_lm.analysis.report.tables import Table
from birthplace_lm.runs.metrics import percent

Groups = list[tuple[str, Callable[[Person], bool]]]
EXAMPLES = 12  # wrong answers that the page shows


def tables_of(runs: Sequence[Knowledge]) -> list[tuple[str, Table]]:
    """Every table with its title; a column for each run."""
    tables = [
        ("Bits about the answer, mean per person (95 % interval)", bits_table(runs)),
        ("Which confidence tells right answers from wrong ones: AUROC (95 % interval)", signal_table(runs)),
        ("Calibration and abstention", calibration_table(runs)),
        ("Where answers come from", origin_table(runs)),
        ("Exact match by group (95 % interval)", group_table(runs)),
    ]
    if any(run.invented is not None for run in runs):
        tables.append(
            (
                "Invented people: whose answer do they get? (95 % interval, names taken as independent)",
                invented_table(runs),
            )
        )
    if voted := agreement(runs):
        rows = [[run, _with_interval(signal)] for run, signal in voted.items()]
        tables.insert(2, ("Agreement of the other seeds as confidence: AUROC", [["run", "AUROC"], *rows]))
    return tables


def _table(runs: Sequence[Knowledge], rows: Sequence[tuple[str, Callable[[Knowledge], str]]]) -> Table:
    return [["", *(run.run for run in runs)], *([name, *map(value, runs)] for name, value in rows)]


def bits_table(runs: Sequence[Knowledge]) -> Table:
    """What is stored, what can be asked for, and the prior, per person and per parameter."""

    def bits(run: Knowledge, name: str, form: str) -> str:
        value = getattr(run.bits, name)
        if value is None:
            return "-"
        limits = run.bits_intervals.get(name)
        return f"{value:{form}}" + (f" ({limits[0]:{form}} to {limits[1]:{form}})" if limits else "")

    def recalled(run: Knowledge) -> str:
        shares = [person.recalled for person in run.people if person.recalled is not None]
        return f"{sum(shares) / len(shares):.1%}" if shares else "-"

    return _table(
        runs,
        [
            ("run", lambda k: k.label),
            ("people asked", lambda k: str(k.people_count)),
            ("exact match", lambda k: _share(k, sum(p.right for p in k.people), len(k.people))),
            ("prior: -log2 q(answer)", lambda k: f"{k.bits.prior:.2f}"),
            ("recalled after pretraining, in the form of its text", recalled),
            ("stored: after pretraining, in the form of its text", lambda k: bits(k, "stored", ".2f")),
            ("extractable: in a question", lambda k: bits(k, "extractable", ".2f")),
            ("extraction gap", lambda k: bits(k, "gap", ".1%")),
            (
                "extractable bits per 1,000 parameters, these people",
                lambda k: f"{1000 * k.bits.extractable * k.people_count / k.parameters:.3f}",
            ),
        ],
    )


def signal_table(runs: Sequence[Knowledge]) -> Table:
    """AUROC of every confidence."""
    names = list(dict.fromkeys(name for run in runs for name in run.signals))

    def cell(name: str) -> Callable[[Knowledge], str]:
        def value(run: Knowledge) -> str:
            return _with_interval(run.signals.get(name))

        return value

    return _table(runs, [(name, cell(name)) for name in names])


def _share(run: Knowledge, right: float, total: int) -> str:
    return interval(right, total, run.answers_per_person)


def _with_interval(signal: Signal | None) -> str:
    if signal is None or math.isnan(signal.auroc):
        return "-"
    return f"{signal.auroc:.2f} ({signal.low:.2f} to {signal.high:.2f})"


def calibration_table(runs: Sequence[Knowledge]) -> Table:
    """How far probabilities can be taken at their word, and what abstention gives."""

    def error(run: Knowledge) -> str:
        low, high = run.calibration_interval
        return f"{run.calibration:.3f} ({low:.3f} to {high:.3f})"

    def threshold(run: Knowledge) -> str:
        return (
            "none reaches it" if math.isinf(run.threshold.score) else f"{math.exp(run.threshold.score):.2f}"
        )

    def abstention(run: Knowledge) -> str:
        right, given, asked = run.abstention
        return f"{_share(run, right, given)} of the {given / asked:.0%} answered" if given else "-"

    return _table(
        runs,
        [
            ("calibration error, 15 bins of equal mass", error),
            ("Brier score", lambda k: f"{k.brier:.3f}"),
            (f"least probability for {PRECISION:.0%} precision, by half of the rows", threshold),
            ("right with that threshold, on the other half", abstention),
        ],
    )


def origin_table(runs: Sequence[Knowledge]) -> Table:
    """Answers by where they come from, and how many of each are right."""
    rows: list[tuple[str, Callable[[Knowledge], str]]] = []
    for kind in (origin.RETRIEVED, origin.OTHER_PLACE, origin.MADE_UP):

        def value(run: Knowledge, kind: str = kind) -> str:
            chosen = [p for p in run.people if p.origin == kind]
            right = sum(p.right for p in chosen)
            return f"{len(chosen) / len(run.people):.1%}; right: {_share(run, right, len(chosen))}"

        rows.append((kind, value))
    for label, counts in (
        ("right in some sense", lambda p: p.lenient),
        ("the right place misspelled", lambda p: p.misspelled),
    ):

        def share(run: Knowledge, counts: Callable[[Person], bool] = counts) -> str:
            return _share(run, sum(map(counts, run.people)), len(run.people))

        rows.append((label, share))
    return _table(runs, rows)


def _groups() -> Groups:
    return [
        (
            "fact in characters 0 to 39 of the line",
            lambda p: p.position is not None and p.position < 40,
        ),
        ("fact in 40 to 79", lambda p: p.position is not None and 40 <= p.position < 80),
        ("fact in 80 to 111", lambda p: p.position is not None and 80 <= p.position < 112),
        ("fact from 112 on", lambda p: p.position is not None and p.position >= 112),
        ("fact not in the line", lambda p: p.position is None),
        ("place never a train answer", lambda p: p.frequency == 0),
        ("place 1 or 2 times", lambda p: 1 <= p.frequency <= 2),
        ("place 3 to 9 times", lambda p: 3 <= p.frequency <= 9),
        ("place 10 times or more", lambda p: p.frequency >= 10),
        ("told by 1 line", lambda p: p.lines == 1),
        ("told by 2 to 9 lines", lambda p: 2 <= p.lines <= 9),
        ("told by 10 to 99 lines", lambda p: 10 <= p.lines <= 99),
        ("told by 100 lines or more", lambda p: p.lines >= 100),
        ("surname once in a line", lambda p: p.repetitions == 1),
        ("surname twice or more", lambda p: p.repetitions > 1),
        ("place replaced (data.replace)", lambda p: p.replaced),
        ("place not replaced", lambda p: not p.replaced),
        ("guessable from a part of the name", lambda p: p.guessable),
        ("not guessable (as in LAMA-UHN)", lambda p: not p.guessable),
    ]


def group_table(runs: Sequence[Knowledge]) -> Table:
    """Exact match of people that have something in common."""
    rows: list[tuple[str, Callable[[Knowledge], str]]] = []
    for name, belongs in _groups():

        def value(run: Knowledge, belongs: Callable[[Person], bool] = belongs) -> str:
            chosen = [p for p in run.people if belongs(p)]
            return f"{_share(run, sum(p.right for p in chosen), len(chosen))}, n = {len(chosen)}"

        if len({belongs(p) for run in runs for p in run.people}) == 2:  # else it says nothing
            rows.append((name, value))
    return _table(runs, rows)


def invented_table(runs: Sequence[Knowledge]) -> Table:
    """Whether answers about invented people are the places of similar ones, against chance."""

    def optional(value: Callable[[Invented], str]) -> Callable[[Knowledge], str]:
        return lambda run: "-" if run.invented is None else value(run.invented)

    def similar(kind: str) -> Callable[[Knowledge], str]:
        def value(run: Knowledge) -> str:
            if run.invented is None or run.invented.similar[kind].total == 0:
                return "-"
            one = run.invented.similar[kind]
            return f"{_share(run, one.matches, one.total)}; chance {one.chance:.1%}"

        return value

    kinds = dict.fromkeys(kind for run in runs if run.invented for kind in run.invented.similar)
    return _table(
        runs,
        [
            ("people", optional(lambda invented: str(len(set(invented.names))))),
            ("answered with a place of train", optional(lambda invented: f"{invented.places:.1%}")),
            *((f"that of the {kind}".replace("the a ", "a "), similar(kind)) for kind in kinds),
            (
                "AUROC of the probability, dev people against invented",
                optional(lambda invented: f"{invented.auroc:.2f}"),
            ),
        ],
    )


_ABOUT = (
    "All dev questions of each run. Bits are over a prior that knows how frequent each place is among the"
    " train answers. The places of train and the answers of all people are candidates: each is scored"
    " exactly. All other texts count as one outcome, so the entropy is a lower bound. An answer comes from"
    " the person's own line if that line has it as a word. Right in some sense also counts a place that"
    " the line names as a part or a whole of the gold one: Lagos, Nigeria. Invented people have a given"
    " name and a surname of the corpus that nobody in it has together. They are compared with everybody"
    " whose place is known and was read; chance is one of these drawn at random. The model's own state is"
    " that of its middle block behind the name."
)


def write_page(runs: Sequence[Knowledge], out: Path) -> None:
    """Write tables, figures and wrong answers as one HTML page.

    Raises:
        InputError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    body = [f"<h1>What the model knows</h1><p>{escape(_ABOUT)}</p>"]
    for title, table in tables_of(runs):
        body.append(f"<h2>{escape(title)}</h2>{html_table(table)}")
    body.append(f"<h2>Risk against coverage</h2>{inline_svg(_risk_figure(runs))}")
    body.append(f"<h2>Reliability</h2>{inline_svg(reliability_figure(runs))}")
    for run in runs:
        wrong = sorted((p for p in run.people if not p.right), key=lambda p: -p.log_p_answer)[:EXAMPLES]
        if wrong:
            rows = [[p.name, p.gold, p.answer, percent(math.exp(p.log_p_answer)), p.origin] for p in wrong]
            head = ["name", "gold", "answer", "probability", "the answer is"]
            body.append(f"<h2>Surest wrong answers of {escape(run.run)}</h2>{html_table([head, *rows])}")
    write_html(out, "What the model knows", "".join(body), CSS)


CSS = "td, th { white-space: normal; overflow-wrap: anywhere } td:first-child { min-width: 8rem }"


def _risk_figure(runs: Sequence[Knowledge]) -> Any:
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    for run in runs:
        risks = run.risks
        coverage = [100 * (k + 1) / len(risks) for k in range(len(risks))]
        axes.plot(coverage, [100 * risk for risk in risks], label=run.run)
    axes.set_xlabel("coverage: answers given, the surest first (%)")
    axes.set_ylabel("risk: wrong among them (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def reliability_figure(runs: Sequence[Knowledge]) -> Any:
    """Share of right answers against their probability, a dot for each tenth of the people."""
    figure = new_figure(7.5, 3.6)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.7", linewidth=1)
    for run in runs:
        people = sorted(run.people, key=lambda p: p.log_p_answer)
        percent = np.array([(100 * math.exp(p.log_p_answer), 100 * p.right) for p in people])
        tenths = [part.mean(0) for part in np.array_split(percent, 10) if len(part)]
        axes.plot(*np.transpose(tenths), marker="o", markersize=4, label=run.run)
    axes.set_xlabel("probability of the answer, mean of a tenth of the people (%)")
    axes.set_ylabel("right (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
