"""Exact match against a numeric setting."""

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
LOG_RATIO = 20  # between the largest and the least value of a logarithmic axis


def numeric_settings(runs: Sequence[Run]) -> list[Setting]:
    """The settings whose values are numbers, at least MIN_VALUES different ones, and that have a figure."""
    return [
        setting
        for setting in varying_settings(runs)
        if len({run.value(setting.keys[0]) for run in runs}) >= MIN_VALUES and _lines(runs, setting)
    ]


def numeric_setting(runs: Sequence[Run], name: str) -> Setting:
    """The setting of `--against`.

    Args:
        name: its key, or its short name.

    Raises:
        InputError: there is none, or no two finished runs differ in it alone.
    """
    choices = [setting for setting in varying_settings(runs) if _lines(runs, setting)]
    for setting in choices:
        if name in (*setting.keys, *setting.names):
            return setting
    available = ", ".join(setting.names[0] for setting in choices) or "none"
    keys = {key for run in runs for key in run.config}
    if name == "seed":
        reason = "the seed is no setting: a figure shows the mean over seeds"
    elif name in keys or any(name in setting.names for setting in varying_settings(runs)):
        reason = "no two finished runs differ in this setting alone, with numbers as values"
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
    """Exact match against a numeric setting: a dot for each run, and a line for each choice of the others.

    The line goes through the means over seeds, with their intervals over people.
    """
    key = setting.keys[0]
    lines = _lines(runs, setting)
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
