"""The checks of attention theory as a table, and as an HTML page with derivations and figures."""

import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from birthplace_lm.analysis.explore.attention_theory import (
    BETA,
    DIMENSIONS,
    DRAWS,
    KEYS,
    NOISE,
    NORM,
    SD,
    STANDARD_ERRORS,
    VARIANCE_ALONG_MEAN,
    Array,
    Check,
    Construction,
    construct,
    copying_errors,
    draw_weights,
    normal_cdf,
    softmax,
)
from birthplace_lm.analysis.html_page import html_table, inline_svg, new_figure, write_html
from birthplace_lm.analysis.report.tables import Table

SHOWN_DIMENSION, SHOWN_KEYS = 64, 10  # of the figures
BLUE, RED, ORANGE = "#4477aa", "#b03a48", "#e0a030"
CSS = """
body { max-width: 900px }
figure { max-width: 640px }
.formula { padding: .5rem 1rem; background: var(--soft); border-left: 3px solid var(--line) }
.formula span { display: inline-block; margin-left: 2.5rem }
.caption { font-size: 13px; margin-top: -.5rem }
.wide td:first-child { white-space: normal; min-width: 10rem }
.row { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: flex-start; margin-bottom: 1rem }
.row figure { flex: 1 1 320px; margin: .5rem 0 }
.matrix { margin: .5rem 0 }
.matrix p { margin: 0 0 .25rem; font-size: 13px }
.matrix th, .matrix td { text-align: center; min-width: 1.8rem; padding: .2rem .3rem }
.matrix th, .matrix td { border: 1px solid var(--line) }
sub, sup { line-height: 0 }
"""


def table_of_checks(checks: Sequence[Check], claim: str = "") -> Table:
    """One row per check, of all claims or of one."""
    head = ["claim", "quantity", "n", "noise", "prediction", "tolerance", *(f"d = {d}" for d in DIMENSIONS)]
    table = [[*head, "pass"]]
    for check in checks:
        expected = check.prediction
        if claim in ("", expected.claim):
            noise = "" if expected.noise is None else f"{expected.noise:g}"
            table.append(
                [
                    expected.claim, expected.quantity, str(expected.keys), noise,
                    f"{expected.value:.4g}", f"{expected.tolerance:.1g}",
                    *(f"{check.measured[d]:.4g}" for d in DIMENSIONS),
                    "yes" if check.passed else "NO",
                ]
            )  # fmt: skip
    return table


def narrow_table_of_checks(checks: Sequence[Check]) -> Table:
    """As `table_of_checks`, with the one measurement that is furthest from the prediction."""
    table = [["claim", "quantity", "n", "noise", "predicted", "measured", "pass"]]
    for check in checks:
        expected = check.prediction
        noise = "" if expected.noise is None else f"{expected.noise:g}"
        furthest = max(check.measured.values(), key=lambda value: abs(value - expected.value))
        values = [f"{expected.value:.3g}", f"{furthest:.3g}", "yes" if check.passed else "NO"]
        table.append([expected.claim, expected.quantity, str(expected.keys), noise, *values])
    return table


def write_page(checks: Sequence[Check], out: Path, seed: int = 0) -> None:
    """Write the page.

    Raises:
        InputError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    lesson = Template((resources.files(__package__) / "lesson.html").read_text(encoding="utf-8"))
    claims = {check.prediction.claim for check in checks}
    parts = {f"table_{claim.replace(' ', '')}": _table(checks, claim) for claim in claims}
    parts |= {**_numbers(checks), **_figures(seed), **_matrices(construct(SHOWN_DIMENSION, seed))}
    write_html(out, "What attention can and cannot express", lesson.substitute(parts), CSS)


def _table(checks: Sequence[Check], claim: str) -> str:
    """The rows of a claim, with Greek letters and indices in their typographic form."""
    columns = list(zip(*table_of_checks(checks, claim), strict=True))[1:]  # all are of one claim
    table = html_table([[*row] for row in zip(*(c for c in columns if any(c[1:])), strict=True)])
    symbols = {"alpha_": "α_", "mu_": "μ_", " . ": " · ", "&lt;=": "≤", "Q transposed": "Qᵀ"}
    for name, symbol in symbols.items():
        table = table.replace(name, symbol)
    return re.sub(r"\b([αμkvcux])_(\w)", r"\1<sub>\2</sub>", table)


def _numbers(checks: Sequence[Check]) -> dict[str, str]:
    """The figures that the text quotes: settings and predictions."""
    predictions = {check.prediction[:4]: f"{check.prediction.value:.3g}" for check in checks}
    n, small, large = SHOWN_KEYS, NOISE[0], NOISE[-1]
    return {
        "passed": str(sum(check.passed for check in checks)),
        "total": str(len(checks)),
        "standard_errors": f"{STANDARD_ERRORS:g}",
        "dimension": str(SHOWN_DIMENSION),
        "keys": str(n),
        "beta": f"{BETA:g}",
        "norm": f"{NORM:g}",
        "draws": f"{DRAWS:,}",
        "small_noise": f"{small:g}",
        "large_noise": f"{large:g}",
        "large_noise_sd": predictions["c i", f"{SD}, one head", n, large],
        "flip_sd": predictions["c ii", f"{SD}, one head", n, small],
        "two_heads_sd": predictions["d ii", f"{SD}, two heads", n, small],
        "two_heads_positive_sd": predictions["d ii", f"{SD}, two heads, where k_a . mu_a > 0", n, small],
        "negative_share": f"{normal_cdf(-1 / math.sqrt(VARIANCE_ALONG_MEAN)):.1%}",
        "hull": predictions["e i", "|best mixture of x - u_b|, x_2 = u_a", 3, None],
        "transposed_1": predictions["e ii", "|c_1 - (u_b - u_c)|, Q transposed", 3, None],
        "transposed_2": predictions["e ii", "|c_2 - u_b|, Q transposed", 3, None],
    }


def _figures(seed: int) -> dict[str, str]:
    draws = draw_weights(SHOWN_DIMENSION, SHOWN_KEYS, NOISE[0], VARIANCE_ALONG_MEAN, seed)
    return {
        "copying_figure": inline_svg(_copying(seed)),
        "one_head_figure": inline_svg(_histogram("one head", draws.one_head, draws.positive)),
        "two_heads_figure": inline_svg(_histogram("two heads", draws.two_heads, draws.positive)),
    }


def _copying(seed: int) -> Any:
    """Plot the error of copying against the gap, with exp(-gap) beside it."""
    figure = new_figure(6.4, 4)
    axes = figure.subplots()
    gaps = np.linspace(0, 20, 81)
    generator = np.random.default_rng([seed, SHOWN_DIMENSION])
    for n, color in zip(KEYS, (BLUE, ORANGE, RED), strict=True):
        half = math.log(n - 1)
        axes.plot(gaps, copying_errors(SHOWN_DIMENSION, n, gaps, generator), color=color, label=f"n = {n}")
        axes.plot(half, copying_errors(SHOWN_DIMENSION, n, np.array([half]), generator), "o", color=color)
    axes.plot(gaps, np.exp(-gaps), "--", color="gray", label="exp(\u2212gap)")
    axes.set(
        yscale="log", xlabel="gap between the score of key j and the others", ylabel="|c \u2212 v\u2c7c|"
    )
    axes.yaxis.set_major_formatter("{x:.0e}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _histogram(title: str, weights: Array, positive: NDArray[np.bool_]) -> Any:
    figure = new_figure(4.6, 3.4)
    axes = figure.subplots()
    axes.hist(
        [weights[positive], weights[~positive]],
        bins=(np.arange(42) - 0.5) / 40,  # 0, 1/2 and 1 are centres
        weights=[np.full(part.sum(), 1 / len(weights)) for part in (positive, ~positive)],
        stacked=True,
        color=[BLUE, RED],
        label=["k\u2090 \u00b7 \u03bc\u2090 > 0", "k\u2090 \u00b7 \u03bc\u2090 \u2264 0"],
    )
    axes.set(title=title, xlabel="\u03b1\u2090", ylabel="share of the draws", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _matrices(made: Construction) -> dict[str, str]:
    """The matrices of claim e in the basis u / |u|."""
    basis = np.stack(list(made.u.values())) / NORM  # (4, d), orthonormal
    vectors = [f"<i>u<sub>{name}</sub></i>" for name in made.u]
    inputs = [f"<i>x</i><sub>{i}</sub>" for i in (1, 2, 3)]
    outputs = [f"<i>c</i><sub>{i}</sub>" for i in (1, 2)]
    changed = np.repeat(made.x[None], 3, 0)
    changed[1, 1] += made.u["d"]
    changed[2, 1] += made.u["c"]
    plain = np.stack([made.outputs(x)[1] for x in changed]) @ basis.T / NORM
    second = [vectors[0], f"{vectors[0]} + {vectors[3]}", f"{vectors[0]} + {vectors[2]}"]
    parts = {
        "matrix_x": _matrix("The inputs", inputs, vectors, made.x @ basis.T / NORM),
        "matrix_plain": _matrix(f"{outputs[1]} for three choices of {inputs[1]}", second, vectors, plain),
        "matrix_v": _matrix("<i>V</i>", vectors, vectors, basis @ made.value @ basis.T),
    }
    for suffix, name, query in (("", "<i>Q</i>", made.query), ("_t", "<i>Q</i><sup>T</sup>", made.query.T)):
        weights = softmax(made.x @ query.T @ made.x.T)[:2]
        c = made.outputs(made.x, query, made.value)[:2] @ basis.T / NORM
        key = "matrix_qt" if suffix else "matrix_q"
        parts[key] = _matrix(name, vectors, vectors, basis @ query @ basis.T)
        parts[f"matrix_weights{suffix}"] = _matrix(f"Weights with {name}", outputs, inputs, weights)
        parts[f"matrix_outputs{suffix}"] = _matrix(f"Outputs with {name}", outputs, vectors, c)
    return parts


def _matrix(title: str, rows: Sequence[str], columns: Sequence[str], values: Array) -> str:
    """A small matrix whose entries are coloured by sign and size. Titles and names are HTML."""
    head = "".join(f"<th>{name}</th>" for name in ("", *columns))
    body = ""
    for name, row in zip(rows, values, strict=True):
        body += f"<tr><th>{name}</th>{''.join(map(_entry, row))}</tr>"
    return f'<div class="matrix"><p>{title}</p><table><tr>{head}</tr>{body}</table></div>'


def _entry(value: float) -> str:
    value = round(float(value), 3) or 0.0  # no negative zero
    color = BLUE if value > 0 else RED
    shade = f' style="background: {color}{round(110 * min(abs(value), 1)):02x}"' if value else ""
    text = f"{value:.3g}".replace("-", "\u2212")
    return f"<td{shade}>{text}</td>"
