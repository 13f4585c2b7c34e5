"""Exact match against one setting."""

from collections.abc import Sequence
from typing import Any

from birthplace_lm.analysis.html_page import new_figure
from birthplace_lm.analysis.report.axes import (
    WIDTH,
    add_legend,
    draw_majority,
    format_as_percent,
    natural_order,
    palette,
    set_log_axis,
    share_limits,
)
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.groups import (
    group_by_settings,
    interval_over_people,
    mean_exact_match,
    without_copies,
)
from birthplace_lm.analysis.report.settings import Setting, shown_settings, varying_settings
from birthplace_lm.errors import InputError

MIN_VALUES = 3  # of a numeric setting that has a figure of its own on the page
MAX_TICKS = 8  # of a logarithmic axis
ROW = 0.24  # inches
LOG_RATIO = 20  # between the largest and the least value of a logarithmic axis


def numeric_settings(runs: Sequence[Run]) -> list[Setting]:
    """The settings whose values are numbers, at least MIN_VALUES different ones, and that have a figure."""
    return [
        setting
        for setting in varying_settings(runs)
        if len({run.value(setting.keys[0]) for run in runs}) >= MIN_VALUES and _lines(runs, setting)
    ]


def chosen_setting(runs: Sequence[Run], name: str) -> Setting:
    """The setting of `--against`.

    Args:
        name: its key, or its short name.

    Raises:
        InputError: there is none, or the finished runs do not differ in it.
    """
    choices = varying_settings(without_copies(runs))
    for setting in choices:
        if name in (*setting.keys, *setting.names):
            return setting
    available = ", ".join(setting.names[0] for setting in choices) or "none"
    if name == "seed":
        reason = "the seed is no setting: a figure shows the mean over seeds"
    elif any(name in run.config for run in runs):
        reason = "the finished runs do not differ in this setting"
    else:
        reason = "no such setting"
    raise InputError(f"--against {name}: {reason}; possible: {available}")


def _lines(runs: Sequence[Run], setting: Setting) -> list[tuple[str, list[Run]]]:
    """The finished runs that differ in a numeric setting and the seed alone, with their label without it.

    Runs of one value only have no line, and the labels hold only what varies among the others. Empty if a
    value is not a number.
    """
    key = setting.keys[0]
    finished = without_copies(runs)
    if any(type(run.config.get(key)) not in (int, float) for run in finished):  # a bool is no number
        return []
    others = [other for other in shown_settings(finished) if other.keys != setting.keys]
    groups = group_by_settings(finished, others).values()
    comparable = [run for line in groups if len({run.config[key] for run in line}) > 1 for run in line]
    others = [other for other in shown_settings(comparable) if other.keys != setting.keys]
    lines = [
        (", ".join(filter(None, (other.label(line[0]) for other in others))) or "exact match", line)
        for line in group_by_settings(comparable, others).values()
    ]
    # A label has the same color in the figures of two reports.
    return sorted(lines, key=lambda line: natural_order(line[0]))


def setting_figure(runs: Sequence[Run], setting: Setting) -> Any:
    """Exact match against a setting: over a number where runs differ in nothing else, otherwise in rows."""
    lines = _lines(runs, setting)
    return _figure_of_lines(runs, setting, lines) if lines else _figure_of_rows(runs, setting)


def _figure_of_lines(runs: Sequence[Run], setting: Setting, lines: Sequence[tuple[str, list[Run]]]) -> Any:
    """A dot for each run, and a line for each choice of the other settings.

    The line goes through the means over seeds, with their intervals over people.
    """
    key = setting.keys[0]
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    for (label, line), color in zip(lines, palette(len(lines)), strict=True):
        by_value: dict[float, list[Run]] = {}
        for run in sorted(line, key=lambda run: run.config[key]):
            by_value.setdefault(run.config[key], []).append(run)
        style: dict[str, Any] = {"color": color, "linewidth": 1.2}
        axes.plot([*by_value], [mean_exact_match(seeds) for seeds in by_value.values()], label=label, **style)
        for value, seeds in by_value.items():
            axes.plot([value, value], interval_over_people(seeds), alpha=0.4, **style)
            shares = [run.dev.exact_match for run in seeds if run.dev]
            axes.plot([value] * len(shares), shares, "o", color=color, markersize=4)
    values = sorted({run.config[key] for _, line in lines for run in line})
    if values[0] > 0 and values[-1] >= LOG_RATIO * values[0]:
        set_log_axis(axes, "x")
        axes.set_xticks(values[:: -(-len(values) // MAX_TICKS)])
    elif all(isinstance(value, int) for value in values):
        axes.set_xticks(values)
    draw_majority(axes.axhline, runs)
    axes.set(xlabel=setting.heading, ylabel="exact match on dev")
    format_as_percent(axes.yaxis)
    axes.set_ylim(*share_limits(axes.get_ylim()))
    axes.grid(alpha=0.3)
    add_legend(figure)
    return figure


def _figure_of_rows(runs: Sequence[Run], setting: Setting) -> Any:
    """A row for each value, the best first: a dot for each run, and the mean over seeds with its interval.

    A colour stands for a choice of the other settings.
    """
    finished = without_copies(runs)
    others = [other for other in shown_settings(finished) if other.keys != setting.keys]
    rows = [*group_by_settings(finished, [setting]).values()]
    rows.sort(key=lambda row: -max(map(mean_exact_match, group_by_settings(row, others).values())))
    labels = {run: ", ".join(filter(None, (other.label(run) for other in others))) for run in finished}
    names = sorted({*labels.values()}, key=natural_order)
    color = dict(zip(names, palette(len(names)), strict=True))
    figure = new_figure(WIDTH, 1.2 + ROW * len(rows))
    axes = figure.subplots()
    labelled: set[str] = {""}
    for y, row in enumerate(rows):
        for seeds in group_by_settings(row, others).values():
            name = labels[seeds[0]]
            shares = [run.dev.exact_match for run in seeds if run.dev]
            style: dict[str, Any] = {"color": color[name], "label": None if name in labelled else name}
            axes.plot(shares, [y] * len(shares), "o", markersize=4, alpha=0.6, **style)
            axes.plot(interval_over_people(seeds), [y, y], color=color[name], linewidth=1.2, alpha=0.5)
            axes.plot([mean_exact_match(seeds)], [y], "|", color=color[name], markersize=9)
            labelled.add(name)
    draw_majority(axes.axvline, runs)
    axes.set_yticks(range(len(rows)), [setting.display(row[0]) or "-" for row in rows], fontsize=8)
    axes.set(xlabel="exact match on dev", ylim=(len(rows) - 0.5, -0.5))
    format_as_percent(axes.xaxis)
    axes.set_xlim(*share_limits(axes.get_xlim()))
    axes.grid(alpha=0.3)
    add_legend(figure)
    return figure
