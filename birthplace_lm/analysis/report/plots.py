"""Plots of a report: exact match by setting, learning curves, kinds of answers."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import Any

from birthplace_lm.analysis.html_page import new_figure
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.curves import Curve, learning_curve
from birthplace_lm.analysis.report.settings import (
    Setting,
    labels,
    seed_varies,
    shown_settings,
    varying_settings,
)
from birthplace_lm.analysis.report.summary import (
    group_by_settings,
    interval_over_people,
    mean_exact_match,
    without_copies,
)
from birthplace_lm.errors import InputError

WIDTH = 5.6  # inches; two fit side by side on a wide screen, and one is legible on a phone
LEGEND_LINE = 0.17  # inches
LABEL_LINE = 0.17  # inches
LABEL_CHARACTERS = 84  # of a line of a label
SMOOTHED_POINTS = 20  # so many independent points are left of a loss
MAX_POINTS = 500  # of a raw curve
MIN_VALUES = 3  # of a numeric setting that has a figure of its own on the page
MAX_TICKS = 8  # of a logarithmic axis
LOG_RATIO = 20  # between the largest and the least value of a logarithmic axis
ANSWER_CATEGORIES = {
    "right": "#2a9d55",
    "a wrong train answer": "#e0a030",
    "the majority answer": "#b5651d",
    "not a train answer": "#b03a48",
    "an empty text": "#777777",
}
VALIDATION = "exact match of validations"  # on dev, or on the held-out rows
SHARED = "#999999"  # of a curve that several settings share
# Nine colours that are told apart best; more settings than that take them from a continuous scale.
COLORS = ("#4477aa", "#ee6677", "#228833", "#997700", "#009e9e", "#aa3377", "#444444", "#ee7733", "#117733")


def _wrapped(label: str) -> str:
    """A label in lines that fit the figure."""
    return textwrap.fill(label, LABEL_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _label_rows(axes: Any, texts: Sequence[str], offset: float, **style: Any) -> None:
    """Write a label above each row of the axes, and leave room for labels of several lines.

    Labels take no part in the layout, which would shrink the axes to make room for long ones.
    """
    wrapped = [*map(_wrapped, texts)]
    lines = max((text.count("\n") for text in wrapped), default=0) + 1
    axes.figure.set_figheight(axes.figure.get_figheight() + LABEL_LINE * (lines - 1) * len(texts))
    for row, text in enumerate(wrapped):
        label = axes.text(y=row - offset, s=text, fontsize=8, va="bottom", linespacing=1.1, **style)
        label.set_in_layout(False)
    axes.set_ylim(len(texts) - 0.6, -0.75 - 0.1 * (lines - 1))


def colors(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each label, the best run's first."""
    names = [*dict.fromkeys(labels(runs).values())]
    return dict(zip(names, _palette(len(names)), strict=True))


def _palette(count: int) -> Sequence[str]:
    if count <= len(COLORS):
        return COLORS[:count]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["turbo"]
    return [to_hex(scale(0.05 + 0.9 * i / (count - 1))) for i in range(count)]


def save_figure(runs: Sequence[Run], out: Path, against: str | None = None) -> None:
    """Write exact match of the finished runs and their majority baseline as an SVG or PNG file.

    Args:
        against: a numeric setting, or its short name; None for the characters read.

    Raises:
        InputError: matplotlib is not installed, no run is finished, no two runs differ in `against` alone, or
            the file cannot be written.
    """
    finished = [run for run in runs if run.dev]
    if against is None:
        figure = curves_figure(finished, "exact_match", VALIDATION)
        _add_legend(figure)
    else:
        figure = setting_figure(finished, _numeric_setting(finished, against))
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error


def scores_figure(runs: Sequence[Run]) -> Any:
    """Exact match: each run is a dot with its interval, each setting a line with its label above it."""
    names, palette = labels(runs), colors(runs)
    groups = group_by_settings(without_copies(runs), shown_settings(runs))
    figure = new_figure(WIDTH, 0.9 + 0.48 * len(groups))
    axes = figure.subplots()
    for line, seeds in enumerate(groups.values()):
        color = palette[names[seeds[0]]]
        for number, run in enumerate(seeds):
            assert run.dev is not None
            low, high = run.dev.interval
            y = line + 0.1 * (number - (len(seeds) - 1) / 2) * min(1, 3 / len(seeds))
            axes.plot([low, high], [y, y], color=color, linewidth=1.5, alpha=0.4)
            axes.plot(run.dev.exact_match, y, "o", color=color, markersize=4)
    _label_rows(
        axes,
        [names[seeds[0]] for seeds in groups.values()],
        0.28,
        x=0.01,
        transform=axes.get_yaxis_transform(),
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # the line of the majority ends there
    )
    _draw_majority(axes.axvline, runs)
    axes.set(xlabel="exact match on dev", yticks=[])
    _in_percent(axes.xaxis)
    axes.set_xlim(*_limits(axes.get_xlim()))
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", fontsize=8, frameon=False)
    return figure


def curves_figure(runs: Sequence[Run], name: str, title: str) -> Any:
    """Learning curves; all seeds of a setting have one colour. A loss is smoothed, the raw one behind it.

    What runs of several settings share, a pretraining, is grey: as far as their losses are equal. Exact match
    may be equal by chance.

    Raises:
        InputError: there is no run, or matplotlib is not installed.
    """
    if not runs:
        raise InputError("no run is finished; a curve needs one")
    names, palette = labels(runs), colors(runs)
    curves = {run: learning_curve(run, name) for run in runs}
    losses = {run: learning_curve(run, "loss") for run in runs}
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    labelled: set[str] = set()
    for run, curve in curves.items():
        others = [losses[other] for other in runs if names[other] != names[run]]
        end = max((_end_of_shared(losses[run], other) for other in others), default=-1.0)
        lines: list[tuple[Curve, dict[str, Any]]] = [(curve, {"marker": "." if len(curve) < 50 else ""})]
        if name == "loss":
            lines = [(smoothed(curve), {}), (curve, {"linewidth": 0.6, "alpha": 0.25})]
        for points, style in lines:
            shared = [point for point in points if point[0] <= end]
            own = [point for point in points if point[0] >= end]
            for part, color, label in ((shared, SHARED, "shared"), (own, palette[names[run]], names[run])):
                if part:
                    legend = None if label in labelled else label
                    axes.plot(
                        *_columns(_thinned(part)), **{"linewidth": 1.2, **style}, color=color, label=legend
                    )
                    labelled.add(label)
    axes.set(xlabel="million characters read", ylabel=title)
    if name == "loss":
        _in_decades(axes, "y")
    else:
        _draw_majority(axes.axhline, runs)
        _in_percent(axes.yaxis)
        axes.set_ylim(*_limits(axes.get_ylim()))
    axes.grid(alpha=0.3)
    return figure


def numeric_settings(runs: Sequence[Run]) -> list[Setting]:
    """The settings whose values are numbers, at least MIN_VALUES different ones, and that have a figure."""
    return [
        setting
        for setting in varying_settings(runs)
        if len({run.value(setting.keys[0]) for run in runs}) >= MIN_VALUES and _lines(runs, setting)
    ]


def _numeric_setting(runs: Sequence[Run], name: str) -> Setting:
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
    return sorted(lines, key=itemgetter(0))  # a label has the same color in the figures of two reports


def setting_figure(runs: Sequence[Run], setting: Setting) -> Any:
    """Exact match against a numeric setting: a dot for each run, and a line for each choice of the others.

    The line goes through the means over seeds, with their intervals over people.
    """
    key = setting.keys[0]
    lines = _lines(runs, setting)
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    for (label, line), color in zip(lines, _palette(len(lines)), strict=True):
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
        _in_decades(axes, "x")
        axes.set_xticks(values[:: -(-len(values) // MAX_TICKS)])
    elif all(isinstance(value, int) for value in values):
        axes.set_xticks(values)
    _draw_majority(axes.axhline, runs)
    axes.set(xlabel=setting.heading, ylabel="exact match on dev")
    _in_percent(axes.yaxis)
    axes.set_ylim(*_limits(axes.get_ylim()))
    axes.grid(alpha=0.3)
    _add_legend(figure)
    return figure


def _add_legend(figure: Any) -> None:
    """Add a legend below the axes, for which the figure grows."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    wrapped = [*map(_wrapped, names)]
    lines = sum(text.count("\n") + 1 for text in wrapped)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
    figure.legend(handles, wrapped, loc="outside lower left", fontsize=8)


def _end_of_shared(curve: Curve, other: Curve) -> float:
    """How far two curves have the same points, in characters; -1 if they begin apart."""
    end = -1.0
    for point, others in zip(curve, other, strict=False):
        if point != others:
            break
        end = point[0]
    return end


def answers_figure(runs: Sequence[Run], answers: Mapping[Run, Counter[str]]) -> Any:
    """The shares of the kinds of answers on dev, a bar for each run with its label above it."""
    names = labels(runs)
    seeds = seed_varies(runs)
    texts = []
    figure = new_figure(WIDTH, 1.1 + 0.42 * len(answers))
    axes = figure.subplots()
    for line, (run, counts) in enumerate(answers.items()):
        left = 0.0
        for category, color in ANSWER_CATEGORIES.items():
            share = counts[category] / counts.total()
            axes.barh(line, share, 0.4, left=left, color=color, label=category if line == 0 else None)
            left += share
        texts.append(f"{names[run]}, seed {run.display('seed')}" if seeds else names[run])
    _label_rows(axes, texts, 0.26, x=0)
    axes.set(xlim=(0, 1), xlabel="share of the answers on dev", yticks=[])
    _in_percent(axes.xaxis)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure


def smoothed(curve: Curve) -> Curve:
    """The exponential moving average of a curve over a twentieth of it, without a bias to its beginning."""
    new = min(1.0, SMOOTHED_POINTS / max(1, len(curve)))
    points, total, weight = [], 0.0, 0.0
    for x, y in curve:
        if math.isfinite(y):
            total = (1 - new) * total + new * y
            weight = (1 - new) * weight + new
            points.append((x, total / weight))
    return points


def _thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS points, evenly chosen, the last one included."""
    step = math.ceil(len(curve) / MAX_POINTS) or 1
    return curve[::-1][::step][::-1]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x / 1e6 for x, _ in curve], [y for _, y in curve]


def _draw_majority(line: Any, runs: Sequence[Run]) -> None:
    """A line for each baseline of the runs; several are labelled with their data."""
    data: dict[float, list[str]] = {}
    for run in runs:
        if run.metrics:
            data.setdefault(run.metrics.baseline.exact_match, []).append(run.display("labels.data"))
    for (share, names), style in zip(sorted(data.items()), cycle(("--", ":", "-."))):
        of = f" of {', '.join(dict.fromkeys(names))} ({100 * share:.1f} %)" if len(data) > 1 else ""
        line(share, color="gray", linestyle=style, linewidth=1, label=f"majority answer{of}")


def _in_percent(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def _in_decades(axes: Any, name: str) -> None:
    """A logarithmic axis, "x" or "y", with numbers also where it covers less than a factor of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")  # the usual one needs mathematical text
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _limits(data: tuple[float, float]) -> tuple[float, float]:
    """The limits of an axis of shares: those of the data, but not beyond 0 and 100 %."""
    return max(data[0], -0.01), min(data[1], 1.01)
