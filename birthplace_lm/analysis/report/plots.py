"""Plots of a report: exact match by setting, learning curves, kinds of answers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from birthplace_lm.analysis.html_page import new_figure
from birthplace_lm.analysis.report.axes import (
    WIDTH,
    add_legend,
    colors,
    draw_majority,
    format_as_percent,
    label_rows,
    set_log_axis,
    share_limits,
)
from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.curves import CURVES, Curve, learning_curve
from birthplace_lm.analysis.report.groups import group_by_settings, without_copies
from birthplace_lm.analysis.report.setting_figure import chosen_setting, setting_figure
from birthplace_lm.analysis.report.settings import labels, seed_varies, shown_settings
from birthplace_lm.errors import CheckpointError, InputError

MAX_POINTS = 500  # of a raw curve
ANSWER_CATEGORIES = {
    "right": "#2a9d55",
    "a wrong train answer": "#e0a030",
    "the majority answer": "#b5651d",
    "not a train answer": "#b03a48",
    "an empty text": "#777777",
}
MAX_SETTINGS = 8  # whose curves have one pair of axes; more colours are hard to tell apart
PANELS, PANEL_COLOR = 4, "#4477aa"  # of more settings: in a row
SHARED = "#999999"  # of a curve that several settings share


def save_figure(
    runs: Sequence[Run], out: Path, against: str | None = None, curve: str = "exact_match"
) -> None:
    """Write a figure of the finished runs as an SVG or PNG file.

    Args:
        against: draw exact match against this setting, given by its key or short name; None: a curve.
        curve: one of CURVES, drawn over the characters read.

    Raises:
        InputError: matplotlib is not installed, no run is finished, or the runs do not differ in `against`.
        CheckpointError: the file cannot be written.
    """
    finished = [run for run in runs if run.dev]
    if against is None:
        figure = curves_figure(finished, curve)
        if len(figure.axes) == 1:
            add_legend(figure)
    else:
        figure = setting_figure(finished, chosen_setting(finished, against))
    try:
        figure.savefig(out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error
    except ValueError as error:  # of so many settings that it is too high
        raise InputError(f"{out}: cannot be written: {error}") from error


def scores_figure(runs: Sequence[Run]) -> Any:
    """Exact match: each run is a dot with its interval, each setting a line with its label above it."""
    groups = group_by_settings(without_copies(runs), shown_settings(runs))
    figure = new_figure(WIDTH, 0.9 + 0.48 * len(groups))
    names, palette = labels(runs), colors(runs)
    axes = figure.subplots()
    for line, seeds in enumerate(groups.values()):
        color = palette[names[seeds[0]]]
        for number, run in enumerate(seeds):
            assert run.dev is not None
            low, high = run.dev.interval
            y = line + 0.1 * (number - (len(seeds) - 1) / 2) * min(1, 3 / len(seeds))
            axes.plot([low, high], [y, y], color=color, linewidth=1.5, alpha=0.4)
            axes.plot(run.dev.exact_match, y, "o", color=color, markersize=4)
    label_rows(
        axes,
        [names[seeds[0]] for seeds in groups.values()],
        0.28,
        x=0.01,
        transform=axes.get_yaxis_transform(),
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # the line of the majority ends there
    )
    draw_majority(axes.axvline, runs)
    axes.set(xlabel="exact match on dev", yticks=[])
    format_as_percent(axes.xaxis)
    axes.set_xlim(*share_limits(axes.get_xlim()))
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", fontsize=8, frameon=False)
    return figure


def curves_figure(runs: Sequence[Run], name: str) -> Any:
    """One of CURVES over the characters read; all seeds of a setting have one colour.

    More than MAX_SETTINGS settings have a panel each, with the best one in grey behind. The loss is smoothed,
    with the raw one behind it.

    A pretraining that runs of different settings share is grey: the part of a curve over which their training
    losses are equal. Losses decide for every curve, because exact match can be equal by chance.

    Raises:
        InputError: there is no run, or matplotlib is not installed.
    """
    if not runs:
        raise InputError("no run is finished; a curve needs one")
    label = labels(runs)
    settings = [label[seeds[0]] for seeds in group_by_settings(runs, shown_settings(runs)).values()]
    if len(settings) > MAX_SETTINGS:
        return _panels(runs, name, settings)
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    labelled: set[str] = set()
    for stroke in _strokes(runs, name):
        legend = None if stroke.label in labelled else stroke.label
        axes.plot(*_columns(stroke.points), **stroke.style, color=stroke.color, label=legend)
        labelled.add(stroke.label)
    _finish_curves(axes, runs, name)
    axes.set(xlabel="million characters read", ylabel=CURVES[name])
    return figure


def _panels(runs: Sequence[Run], name: str, settings: Sequence[str]) -> Any:
    """A panel for each setting, whose curves are before those of the first."""
    rows = -(-len(settings) // PANELS)
    figure = new_figure(WIDTH, 0.8 + 1.3 * rows)
    strokes = _strokes(runs, name)
    grid = figure.subplots(rows, PANELS, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, setting in zip(grid, settings, strict=False):
        for shown, color in ((settings[0], SHARED), (setting, PANEL_COLOR)):
            for stroke in strokes:
                if stroke.setting == shown:
                    axes.plot(*_columns(stroke.points), **{**stroke.style, "marker": ""}, color=color)
        axes.set_title(setting.replace(", ", "\n"), fontsize=6)
        axes.tick_params(labelsize=6)
        _finish_curves(axes, runs, name)
    for axes in grid[len(settings) :]:
        axes.set_axis_off()
    figure.supxlabel("million characters read", fontsize=8)
    figure.supylabel(CURVES[name], fontsize=8)
    return figure


@dataclass(frozen=True)
class _Stroke:
    """A piece of a curve: of one run, in one colour."""

    setting: str
    label: str
    color: str
    style: dict[str, Any]
    points: Curve


def _strokes(runs: Sequence[Run], name: str) -> list[_Stroke]:
    names, palette = labels(runs), colors(runs)
    losses = {run: learning_curve(run, "loss") for run in runs}
    strokes = []
    for run in runs:
        curve = learning_curve(run, name)
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
                    drawn = {"linewidth": 1.2, **style}
                    strokes.append(_Stroke(names[run], label, color, drawn, _thinned(part)))
    return strokes


def _finish_curves(axes: Any, runs: Sequence[Run], name: str) -> None:
    """The scale of the values, the majority answer and a grid."""
    if name in ("loss", "val_loss"):
        set_log_axis(axes, "y")
    elif name == "exact_match":
        draw_majority(axes.axhline, runs)
        format_as_percent(axes.yaxis)
        axes.set_ylim(*share_limits(axes.get_ylim()))
    axes.grid(alpha=0.3)


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
    label_rows(axes, texts, 0.26, x=0)
    axes.set(xlim=(0, 1), xlabel="share of the answers on dev", yticks=[])
    format_as_percent(axes.xaxis)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure


def smoothed(curve: Curve) -> Curve:
    """The centred moving average of a curve over a twentieth of its points, so that it does not lag.

    Near the ends the average is over fewer points, as many before a point as after it.
    """
    finite = [(x, y) for x, y in curve if math.isfinite(y)]
    sums = [0.0, *accumulate(y for _, y in finite)]
    points = []
    for i, (x, _) in enumerate(finite):
        reach = min(len(finite) // 40, i, len(finite) - 1 - i)
        points.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return points


def _thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS points, evenly chosen, the last one included."""
    step = math.ceil(len(curve) / MAX_POINTS) or 1
    return curve[::-1][::step][::-1]


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [x / 1e6 for x, _ in curve], [y for _, y in curve]
