"""The report as one self-contained HTML page."""

import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from birthplace_lm.analysis.html_page import escape, inline_svg, write_html
from birthplace_lm.analysis.report.answers import UNREADABLE, categorize
from birthplace_lm.analysis.report.axes import colors
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.curves import characters_until_half
from birthplace_lm.analysis.report.differences import Differences
from birthplace_lm.analysis.report.plots import MAX_SETTINGS, answers_figure, curves_figure, scores_figure
from birthplace_lm.analysis.report.setting_figure import numeric_settings, setting_figure
from birthplace_lm.analysis.report.settings import seed_varies, shown_settings
from birthplace_lm.analysis.report.summary import (
    difference_note,
    failures,
    interval_note,
    naming_note,
    notes,
    table_of_runs,
    table_of_seeds,
)
from birthplace_lm.analysis.report.tables import Table

PACKAGES = ("birthplace-lm", "torch", "lightning")  # whose versions the page names
LONG_CELL = 40  # characters; a longer cell is broken into lines
CSS = """
body { max-width: 1220px }
th { cursor: pointer; white-space: normal; vertical-align: bottom }
td { vertical-align: top }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 14rem }
@media (max-width: 700px) {
  thead { display: none }
  table, tbody, td { display: block }
  tr { display: flex; flex-wrap: wrap; margin: .5rem 0; padding: .3rem 0; border: 1px solid var(--line);
    border-radius: 8px }
  td.long { flex-basis: 100% }
  td, td.long { border: 0; padding: .1rem .7rem; white-space: normal; overflow-wrap: anywhere; min-width: 0 }
  td:empty { display: none }
  td::before { content: attr(data-heading) ": "; opacity: .65 }
}
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 0 1rem }
.plots figure { width: 100%; max-width: 640px; box-sizing: border-box }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; font-size: 13px;
  background: #fff; color: #222 }
.legend span { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em }
"""
SORT_JS = """
const number = text => parseFloat(text.split("= ").pop().replace(/,/g, ""));
document.querySelectorAll("th").forEach(th => th.onclick = () => {
  const body = th.closest("table").tBodies[0], sign = th.dataset.sign = -(th.dataset.sign || -1);
  const of = row => row.cells[th.cellIndex].textContent;
  const order = (a, b) => sign * (number(of(a)) - number(of(b)) || of(a).localeCompare(of(b)));
  [...body.rows].sort(order).forEach(row => body.append(row));
});
"""


def write_page(runs: Sequence[Run], root: Path, out: Path, compared: Differences | None = None) -> None:
    """Write the report as an HTML page.

    Args:
        compared: adds a column to a table.

    Raises:
        InputError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    compared = compared or Differences()
    done = [run for run in runs if run.dev]
    title = f"Report: {root.resolve().name}"
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in _origin())]
    learned_after = {run: characters_until_half(run) for run in done}
    if done:
        figures = [
            scores_figure(done),
            *(setting_figure(done, setting) for setting in numeric_settings(done)),
        ]
        pictures = "".join(inline_svg(curves_figure(done, name)) for name in ("exact_match", "loss"))
        parts.append(f'<h2>Exact match</h2><div class="plots">{"".join(map(inline_svg, figures))}</div>')
        if seed_varies(runs):
            parts.append(_cards(table_of_seeds(runs, compared, learned_after)))
        legend = _legend(done) if len(colors(done)) <= MAX_SETTINGS else ""
        parts.append(f'<h2>Learning curves</h2>{legend}<div class="plots">{pictures}</div>')
        parts.append(
            "<p>A validation asks dev, or the held-out rows if there are any."
            " The loss is smoothed; the pale line behind it is the raw one."
            " Grey: a pretraining that several settings share; in a panel of a setting, the best one.</p>"
        )
    all_runs = table_of_runs(runs, paths=False, learned_after=learned_after, compared=compared)
    parts.append(f"<h2>All runs</h2>{_cards(all_runs)}")
    if done:
        parts.append("<p>until 50%: million characters until a validation has half of the answers right.</p>")
    lines = [*notes(runs), naming_note(runs), *interval_note(runs), *difference_note(runs, compared)]
    lines += [*compared.failures, *failures(runs)]
    parts += [f"<p>{escape(line)}</p>" for line in lines]
    if done:
        parts.append("<h2>Where the errors are</h2>" + _errors(done))
    write_html(out, title, "".join(parts), CSS, SORT_JS)


def _origin() -> list[str]:
    """When, by which command and with which versions the page is made."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} without a version")
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return [time.strftime("%Y-%m-%d %H:%M %Z"), command, ", ".join(versions)]


def _cards(table: Table) -> str:
    """A table; in a narrow window each row is a card with the headings beside the cells."""
    head, *rows = table
    names = [*map(escape, head)]
    body = ""
    for row in rows:
        body += "<tr>"
        for name, cell in zip(names, row, strict=True):
            wraps = ' class="long"' if len(cell) > LONG_CELL else ""
            body += f'<td data-heading="{name}"{wraps}>{escape(cell)}</td>'
        body += "</tr>"
    headings = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>'


def _legend(runs: Sequence[Run]) -> str:
    entries = (
        f'<li><span style="background:{color}"></span>{escape(label)}</li>'
        for label, color in colors(runs).items()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _errors(runs: Sequence[Run]) -> str:
    """Plot the shares of the answer categories, and list the most frequent wrong answers."""
    answers, messages = {}, ""
    for run in runs:
        try:
            answers[run] = categorize(run)
        except UNREADABLE as error:
            messages += f"<p>{escape(run.path.name)} is not shown: {escape(error)}.</p>"
    if not answers:
        return messages
    figure = answers_figure(runs, {run: counts for run, (counts, _) in answers.items()})
    settings = shown_settings(runs)
    seeds = ["seed"] if seed_varies(runs) else []
    table = [[*(setting.heading for setting in settings), *seeds, "frequent wrong answers", "examples"]]
    for run, (_, errors) in answers.items():
        frequent = Counter(answer for _, answer, _ in errors).most_common(4)
        examples = [
            f"{q} {answer} (gold: {gold})" for q, answer, gold in errors[:: max(1, len(errors) // 3)][:3]
        ]
        wrong = ", ".join(f"{answer} {count}" for answer, count in frequent)
        values = [*(setting.display(run) for setting in settings), *map(run.display, seeds)]
        table.append([*values, wrong, "; ".join(examples)])
    return f'<div class="plots">{inline_svg(figure)}</div>{_cards(table)}{messages}'
