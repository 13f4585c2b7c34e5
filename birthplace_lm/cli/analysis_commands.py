"""The commands that look at runs and models: reports, curves, theory, attention, knowledge, capacity."""

import math
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from birthplace_lm.cli.options import (
    AsJson,
    Checkpoint,
    Plugins,
    Run,
    Which,
    check_distinct,
    check_output,
    check_page,
    print_json,
)
from birthplace_lm.data.questions import normalise
from birthplace_lm.errors import BirthplaceError, InputError
from birthplace_lm.runs.metrics import percent

WIDE = 150  # columns of a terminal that shows every measurement of explore

app = typer.Typer()


class Format(StrEnum):
    """Format of a report."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


class Curve(StrEnum):
    """Curve of a figure."""

    exact_match = "exact_match"
    loss = "loss"
    val_loss = "val_loss"
    learning_rate = "learning_rate"


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run directory.")],
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.table,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with tables and plots.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Save learning curves, or another figure, as .svg or .png.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Setting of the figure: a numeric one is the x axis, of another each value is a row.",
        ),
    ] = None,
    curve: Annotated[
        Curve, typer.Option(help="Curve of the figure, over the characters read.")
    ] = Curve.exact_match,
    curves_csv: Annotated[Path | None, typer.Option(help="Write all points of the curves as CSV.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Setting that the others are compared with; by default the best one."
        ),
    ] = None,
) -> None:
    """Compare the runs of a folder: settings, exact match, cost and state of each, and means over seeds.

    Example: birthplace-lm report runs --html report.html
    """
    from birthplace_lm.analysis.report import summary
    from birthplace_lm.analysis.report.collect import find_runs
    from birthplace_lm.analysis.report.differences import differences

    if against is not None and figure is None:
        raise InputError("--against needs --figure FILE")
    if curve is not Curve.exact_match and (figure is None or against is not None):
        raise InputError("--curve needs --figure FILE, and not --against")
    check_page(page)
    check_output("--figure", figure, (".svg", ".png"))
    check_output("--curves-csv", curves_csv)
    runs = find_runs(folder)  # the tables come last: an error in a file is not below them
    compared = differences(runs, reference or [])
    if figure is not None:  # first: it may refuse `against`
        from birthplace_lm.analysis.report.plots import save_figure

        save_figure(runs, figure, against, curve.value)
    if page is not None:
        from birthplace_lm.analysis.report.page import write_page

        write_page(runs, folder, page, compared)
    if curves_csv is not None:
        from birthplace_lm.analysis.report.curves import write_curves

        write_curves(runs, curves_csv)
    if form is Format.csv:
        print(summary.as_csv(runs, compared), end="")
    elif form is Format.json:
        print(summary.as_json(runs, compared), end="")
    else:
        print(summary.as_tables(runs, form is Format.markdown, compared))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def tensorboard(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run directory.")],
) -> None:
    """Watch runs in TensorBoard, named by what varies. Further options are TensorBoard's own.

    Example: birthplace-lm tensorboard runs --port 6007
    """
    from birthplace_lm.analysis.tensorboard import serve

    raise typer.Exit(serve(folder, context.args))


@app.command()
def explore(
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with derivations and figures.")
    ] = None,
) -> None:
    """Check what attention can and cannot express: copying, averaging, noisy keys, one head and two.

    Needs no trained model. The exit code is 1 if a claim fails.

    Example: birthplace-lm explore --html theory.html
    """
    from birthplace_lm.analysis.explore.attention_theory import DIMENSIONS, check_claims
    from birthplace_lm.analysis.explore.page import narrow_table_of_checks, table_of_checks, write_page
    from birthplace_lm.analysis.report.tables import show

    check_page(page)
    checks = check_claims()
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE
    show(narrow_table_of_checks(checks) if narrow else table_of_checks(checks))
    passed = sum(check.passed for check in checks)
    print(f"{passed} of {len(checks)} checks pass, each for d = {', '.join(map(str, DIMENSIONS))}")
    if page is not None:
        write_page(checks, page)
    if passed < len(checks):
        raise typer.Exit(1)


@app.command()
def attention(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A full name.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A .png, or an .html page with a picture per layer.")
    ] = Path("attention.png"),
    plugin: Plugins = None,
    checkpoint: Checkpoint = Which.last,
) -> None:
    """Draw the attention weights of every layer and head while the model answers about a person.

    Example: birthplace-lm attention runs/vanilla-... "Ada Lovelace" --out ada.html
    """
    from birthplace_lm.analysis.attention_page import write_attention
    from birthplace_lm.config.compose import load_config
    from birthplace_lm.inference.asking import warnings_about
    from birthplace_lm.inference.language_model import TrainedModel

    check_output("--out", out, (".png", ".html"))
    if not normalise(name):
        raise InputError("NAME is empty; give a full name")
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    for warning in warnings_about(run, load_config(run, plugin or ()), [name]):
        print(f"warning: {warning}", file=sys.stderr)
    answer = write_attention(model, name, out)
    print(f"{name}: {answer.text} ({percent(math.exp(answer.log_probability))}); {out}")


@app.command()
def knowledge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories or exports.")],
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with figures and examples.")
    ] = None,
    pooled: Annotated[
        bool, typer.Option("--pool", help="Count the runs as one, for the seeds of one setting.")
    ] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Measure what runs know: bits, confidence, and where their answers come from.

    Scores every place of train for every dev question; about a minute for 500 of each on two cores.

    Example: birthplace-lm knowledge runs/vanilla-... --html knowledge.html
    """
    from birthplace_lm.analysis.knowledge.confidences import pool
    from birthplace_lm.analysis.knowledge.page import tables_of, write_page
    from birthplace_lm.analysis.knowledge.study import study
    from birthplace_lm.analysis.report.tables import show
    from birthplace_lm.inference.asking import unfinished_warnings

    check_page(page)
    check_distinct(runs)
    studies = []
    for run in runs:
        try:
            for warning in unfinished_warnings(run):
                if len(runs) > 1:
                    raise InputError(warning)
                print(f"warning: {warning}", file=sys.stderr)
            studies.append(study(run, plugin or ()))
        except BirthplaceError as error:
            if len(runs) == 1:
                raise
            print(f"warning: left out: {error}", file=sys.stderr)
    if not studies:
        raise InputError("RUN: none of the runs can be measured")
    if pooled:
        studies = [pool(studies)]
    if page is not None:
        write_page(studies, page)
    if as_json:
        print_json([study.to_dict() for study in studies])
        return
    for title, table in tables_of(studies):
        print(f"\n{title}")
        show(table)


@app.command()
def capacity(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories of experiment=capacity or like it."),
    ],
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a figure.")
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Count the bits that models hold about people with five facts, for each of their parameters.

    Example: birthplace-lm capacity runs/*bios* --html capacity.html
    """
    from dataclasses import asdict

    from birthplace_lm.analysis.knowledge.capacity import capacity_table, measure_capacity, write_page
    from birthplace_lm.analysis.report.tables import show

    check_page(page)
    check_distinct(runs)
    measured = []
    for run in runs:
        try:
            measured.append(measure_capacity(run, plugin or ()))
        except BirthplaceError as error:
            if len(runs) == 1:
                raise
            print(f"warning: left out: {error}", file=sys.stderr)
    if not measured:
        raise InputError("RUN: none of the runs can be measured")
    if page is not None:
        write_page(measured, page)
    if as_json:
        derived = ("bits", "possible_bits", "bits_per_parameter", "bits_per_block_parameter")
        print_json([asdict(one) | {name: getattr(one, name) for name in derived} for one in measured])
    else:
        show(capacity_table(measured))
