"""What the figures of a report share: colours, labels, legends and axes."""

import re
import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.settings import labels

WIDTH = 5.6  # inches; two fit side by side on a wide screen, and one is legible on a phone
LEGEND_LINE = 0.17  # inches
LABEL_LINE = 0.17  # inches
LABEL_CHARACTERS = 84  # of a line of a label
# Nine colours that are told apart best; more settings than that take them from a continuous scale.
COLORS = ("#4477aa", "#ee6677", "#228833", "#997700", "#009e9e", "#aa3377", "#444444", "#ee7733", "#117733")


def colors(runs: Sequence[Run]) -> dict[str, str]:
    """A colour for each label, in the order of the runs.

    Labels get the colours in their natural order, whatever is best, so that two reports of the same settings
    have the same colours.
    """
    names = [*dict.fromkeys(labels(runs).values())]
    by_label = dict(zip(sorted(names, key=natural_order), palette(len(names)), strict=True))
    return {name: by_label[name] for name in names}


def natural_order(label: str) -> list[tuple[float, str]]:
    """A sort key that compares numbers by value: n_layer=2 comes before n_layer=10."""
    return [
        (float(part) if part[0] in "0123456789" else -1.0, part)
        for part in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?|\D+", label, re.ASCII)
    ]


def palette(count: int) -> Sequence[str]:
    """So many colours."""
    if count <= len(COLORS):
        return COLORS[:count]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["turbo"]
    return [to_hex(scale(0.05 + 0.9 * i / (count - 1))) for i in range(count)]


def label_rows(axes: Any, texts: Sequence[str], offset: float, **style: Any) -> None:
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


def add_legend(figure: Any) -> None:
    """Add a legend below the axes, for which the figure grows."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    wrapped = [*map(_wrapped, names)]
    lines = sum(text.count("\n") + 1 for text in wrapped)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)
    figure.legend(handles, wrapped, loc="outside lower left", fontsize=8)


def _wrapped(label: str) -> str:
    """A label in lines that fit the figure."""
    return textwrap.fill(label, LABEL_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def draw_majority(line: Any, runs: Sequence[Run]) -> None:
    """A line for each baseline of the runs; several are labelled with their data."""
    data: dict[float, list[str]] = {}
    for run in runs:
        if run.metrics:
            data.setdefault(run.metrics.baseline.exact_match, []).append(run.display("labels.data"))
    for (share, names), style in zip(sorted(data.items()), cycle(("--", ":", "-."))):
        of = f" of {', '.join(dict.fromkeys(names))} ({100 * share:.1f} %)" if len(data) > 1 else ""
        line(share, color="gray", linestyle=style, linewidth=1, label=f"majority answer{of}")


def format_as_percent(axis: Any) -> None:
    """Label the ticks of an axis of fractions in percent."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def set_log_axis(axes: Any, name: str) -> None:
    """A logarithmic axis, "x" or "y", with numbers also where it covers less than a factor of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")  # the usual one needs mathematical text
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def share_limits(data: tuple[float, float]) -> tuple[float, float]:
    """The limits of an axis of shares: those of the data, but not beyond 0 and 100 %."""
    return max(data[0], -0.01), min(data[1], 1.01)
