"""Learning curves as a picture, and the report as one self-contained HTML page."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from birthplace_lm.analysis.html_page import escape, html_table, inline_svg, new_figure, write_html
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.summary import (
    INTERVAL_NOTE,
    failures,
    group_by_settings,
    labels,
    state_counts,
    table_of_runs,
    table_of_seeds,
    varying_keys,
)
from birthplace_lm.data.corpora.corpus import embedded_corpus_dir
from birthplace_lm.data.corpora.qa_files import majority_answer, read_questions
from birthplace_lm.errors import BirthplaceError, InputError
from birthplace_lm.runs.directory import stage_directory

Curve = list[tuple[float, float]]  # characters read, value

ANSWER_CATEGORIES = {
    "right": "#2a9d55",
    "another answer of train": "#e0a030",
    "the majority answer": "#b5651d",
    "no answer of train": "#b03a48",
    "nothing": "#777777",
}
SORT_CSS = "th { cursor: pointer }"
SORT_JS = """
const number = text => parseFloat(text.split("= ").pop().replace(/,/g, ""));
document.querySelectorAll("th").forEach(th => th.onclick = () => {
  const body = th.closest("table").tBodies[0], sign = th.dataset.sign = -(th.dataset.sign || -1);
  const of = row => row.cells[th.cellIndex].textContent;
  const order = (a, b) => sign * (number(of(a)) - number(of(b)) || of(a).localeCompare(of(b)));
  [...body.rows].sort(order).forEach(row => body.append(row));
});
"""


def learning_curve(run: Run, name: str = "exact_match") -> Curve:
    """A TensorBoard curve of the run over all its stages, against the characters read."""
    curve: Curve = []
    for stage, result in run.metrics.stages.items() if run.metrics else ():
        if not result.steps:
            continue
        folder = stage_directory(run.path, stage)
        if not folder.is_dir():
            continue  # a shared pretraining that was deleted, or not copied
        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # otherwise a line for every resume
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        if (tag := f"by_characters/{name}") in events.Tags()["scalars"]:
            curve += [(event.step, event.value) for event in events.Scalars(tag)]
    return curve


def save_learning_curves(runs: Sequence[Run], out: Path) -> None:
    """Write the learning curves of the finished runs against their majority baseline, as an SVG or PNG file.

    Raises:
        InputError: matplotlib is not installed, no run is finished, or the file cannot be written.
    """
    figure = _curves([run for run in runs if run.dev], "exact_match", "exact match on dev")
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error


def write_page(runs: Sequence[Run], root: Path, out: Path) -> None:
    """Write the report as an HTML page.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    done = [run for run in runs if run.dev]
    parts = [f"<h1>Runs of {escape(root.resolve().name)}</h1><p>{escape(state_counts(runs))}.</p>"]
    if done:
        parts.append("<h2>Exact match</h2>" + inline_svg(_dots(done)) + html_table(table_of_seeds(runs)))
        parts.append(f"<p>{INTERVAL_NOTE}</p>")
        parts.append("<h2>Learning curves</h2>")
        for name, label in (
            ("exact_match", "exact match on dev"),
            ("loss", "training loss, nats a character"),
        ):
            parts.append(inline_svg(_curves(done, name, label)))
        parts.append("<h2>Where the errors are</h2>" + _errors(done))
    parts.append("<h2>All runs</h2>" + html_table(table_of_runs(runs)))
    parts += [f"<p>{escape(failure)}</p>" for failure in failures(runs)]
    write_html(out, root.resolve().name, "".join(parts), SORT_CSS, SORT_JS)


def _dots(runs: Sequence[Run]) -> Any:
    """Plot each seed as a dot with its interval, one line per setting, and the majority baseline."""
    names = labels(runs)
    groups = group_by_settings(runs, varying_keys(runs))
    figure = new_figure(8, 1.2 + 0.4 * len(groups))
    axes = figure.subplots()
    for line, seeds in enumerate(groups.values()):
        for number, run in enumerate(seeds):
            assert run.dev is not None
            low, high = run.dev.interval
            y = line + 0.12 * (number - (len(seeds) - 1) / 2)
            axes.plot([low, high], [y, y], color="#4477aa", linewidth=1.5, alpha=0.5)
            axes.plot(run.dev.exact_match, y, "o", color="#4477aa", markersize=5)
    _majority(axes.axvline, runs)
    axes.set(xlim=(0, 1), xlabel="exact match on dev", yticks=range(len(groups)))
    axes.set_yticklabels([names[first] for first, *_ in groups.values()])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", fontsize=8)
    return figure


def _curves(runs: Sequence[Run], name: str, title: str) -> Any:
    """Plot learning curves; all seeds of a setting have one colour."""
    if not runs:
        raise InputError("no run is finished; a curve needs one")
    figure = new_figure(8, 4)
    axes = figure.subplots()
    colors: dict[str, Any] = {}
    for run, label in labels(runs).items():
        curve = learning_curve(run, name)
        (line,) = axes.plot(
            [x / 1e6 for x, _ in curve],
            [y for _, y in curve],
            marker="." if len(curve) < 50 else None,
            color=colors.get(label),
            label=None if label in colors else label,
            linewidth=1.2,
        )
        colors[label] = line.get_color()
    axes.set(xlabel="million characters read", ylabel=title)
    if name == "exact_match":
        _majority(axes.axhline, runs)
        axes.set(ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _majority(line: Any, runs: Sequence[Run]) -> None:
    best = max((run.metrics.baseline.exact_match for run in runs if run.metrics), default=0.0)
    line(best, color="gray", linestyle="--", linewidth=1, label="majority answer")


def _errors(runs: Sequence[Run]) -> str:
    """Plot the shares of the answer categories, and list the most frequent wrong answers."""
    answers, notes = {}, ""
    for run in runs:
        try:
            answers[run] = _categorize(run)
        except (BirthplaceError, OSError, ValueError, KeyError, TypeError) as error:
            notes += f"<p>{escape(run.path.name)} is not shown: {escape(error)}.</p>"
    if not answers:
        return notes
    figure = new_figure(8, 1.2 + 0.35 * len(answers))
    axes = figure.subplots()
    for line, (counts, _) in enumerate(answers.values()):
        left = 0.0
        for category, color in ANSWER_CATEGORIES.items():
            share = counts[category] / counts.total()
            axes.barh(line, share, left=left, color=color, label=category if line == 0 else None)
            left += share
    axes.set(xlim=(0, 1), xlabel="share of the answers on dev", yticks=range(len(answers)))
    names = labels(runs)
    axes.set_yticklabels([f"{names[run]}, seed {run.display('seed')}" for run in answers], fontsize=8)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(ANSWER_CATEGORIES), fontsize=8)
    table = [["attention", "pretraining", "seed", "most frequent wrong answers", "examples"]]
    for run, (_, errors) in answers.items():
        frequent = Counter(answer for _, answer, _ in errors).most_common(4)
        examples = [
            f"{q}: {answer}, was {gold}" for q, answer, gold in errors[:: max(1, len(errors) // 3)][:3]
        ]
        settings = [run.display(key) for key in ("labels.attention", "labels.pretrain", "seed")]
        wrong = ", ".join(f"{answer} {count}" for answer, count in frequent)
        table.append([*settings, wrong, "; ".join(examples)])
    return inline_svg(figure) + html_table(table) + notes


def _categorize(run: Run) -> tuple[Counter[str], list[tuple[str, str, str]]]:
    """Count the answers on dev by category. Also returns the wrong ones with question and gold answer."""
    folder = run.config["data.root"]
    root = embedded_corpus_dir() if folder is None else Path(folder).expanduser()
    train = read_questions(root / run.config["data.train"], key="data.train")
    dev = read_questions(root / run.config["data.dev"], key="data.dev").rows
    answers = (run.path / "predictions" / "dev.txt").read_text(encoding="utf-8").split("\n")[:-1]
    if len(answers) != len(dev):
        raise ValueError(f"{run.path.name} has {len(answers)} predictions for {len(dev)} questions")
    places = {row.place for row in train.rows}
    majority, _ = majority_answer(train)
    counts: Counter[str] = Counter()
    errors = []
    for row, answer in zip(dev, answers, strict=True):
        if answer.strip() == row.place:
            counts["right"] += 1
            continue
        errors.append((row.question, answer, row.place or ""))
        if answer in places:
            counts["the majority answer" if answer == majority else "another answer of train"] += 1
        else:
            counts["no answer of train" if answer.strip() else "nothing"] += 1
    return counts, errors
