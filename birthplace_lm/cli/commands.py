"""The commands of `birthplace-lm`: one function each; imports that need torch happen inside."""

import json
import logging
import math
import shutil
import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birthplace_lm.cli.streams import protect_standard_streams
from birthplace_lm.data.corpora.consistency import check_characters, check_form
from birthplace_lm.data.corpora.qa_files import read_questions
from birthplace_lm.data.questions import normalise
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError
from birthplace_lm.runs import signals

if TYPE_CHECKING:
    from birthplace_lm.inference.confidence import Threshold
    from birthplace_lm.inference.language_model import TrainedModel

WIDE = 150  # columns of a terminal that shows every measurement of explore

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train models on facts about people, ask them, and compare runs.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("birthplace-lm"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options without a command."""


@app.command(
    add_help_option=False,  # Hydra's parser reads all arguments, --help too
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Pretrain, finetune and evaluate. Every setting is KEY=VALUE; see birthplace-lm train --help.

    Example: birthplace-lm train -m attention=vanilla,synthesizer seed=0,1,2
    """
    signals.install()  # before the imports, which take a moment
    from birthplace_lm.cli.app import main as train_main

    raise typer.Exit(train_main(context.args))


def _complete_runs(typed: str) -> list[str]:
    """Shell completion: run directories that begin with the typed text, also those in `runs`."""
    files = [*Path().glob(f"{typed}*/config.yaml"), *Path("runs").glob("*/config.yaml")]
    return sorted({str(file.parent) for file in files if str(file).startswith(typed)})


Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory or an export.", autocompletion=_complete_runs),
]
NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin", metavar="PACKAGE", help="Package of yours whose classes the run names; repeatable."
    ),
]


class Which(StrEnum):
    """Which checkpoint of a run."""

    last = "last"
    best = "best"


Checkpoint = Annotated[
    Which, typer.Option("--checkpoint", help="best: of a run with callbacks=best_checkpoint.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


def check_page(page: Path | None) -> None:
    """Refuse a file of --html that cannot be written, before anything is computed."""
    if page is not None and (not page.parent.is_dir() or (page.exists() and not page.is_file())):
        raise InputError(f"--html {page}: cannot be written; give a file name in an existing folder")


@app.command()
def ask(
    run: Run,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Full names.")],
    plugin: Plugins = None,
    checkpoint: Checkpoint = Which.last,
    abstain: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=0.999, metavar="PRECISION", help="Say 'I do not know' unless so many are right."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the question of the model about people; print the answers with their probabilities.

    Where the corpus of the run is at hand, the three likeliest places of train follow. With --abstain 0.9 an
    answer is given if its probability is one from which on, with 95 % confidence, at least 90 % of the
    answers to held-out (or else dev) questions are right.

    Example: birthplace-lm ask runs/vanilla-... "Ada Lovelace" "Alan Turing" --abstain 0.9
    """
    from birthplace_lm.data.corpora.people import closest_people
    from birthplace_lm.inference.asking import (
        abstention_threshold,
        corpus_of,
        likeliest_places,
        warnings_about,
    )
    from birthplace_lm.inference.language_model import TrainedModel

    for name in names:
        if len(name.encode()) < 256 and Path(name, "config.yaml").is_file():
            raise InputError(f"{name}: a second run directory; ask one run at a time")
        if not normalise(name):
            raise InputError("NAME is empty; give a full name")
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    for warning in warnings_about(run, names, plugin or ()):
        print(f"warning: {warning}", file=sys.stderr)
    for name in dict.fromkeys(names):
        _, dropped = model.vocab.encode_known(model.vocab.replace_unknown(normalise(name)))
        if dropped:
            print(f"warning: {name}: the model does not know {' '.join(dropped)}", file=sys.stderr)
    questions = [*map(model.question.about_typed, names)]
    answers = model.answer_questions(questions)
    corpus = corpus_of(run, plugin or ())
    places = [[] for _ in names] if corpus is None else likeliest_places(model, corpus, questions)
    least = -math.inf
    unknown: set[str] = set()  # the threshold says nothing about people whom the corpus does not have
    if abstain is not None:
        if corpus is None:
            raise InputError("--abstain: the corpus of the run is not there; it chooses the threshold")
        threshold = abstention_threshold(model, corpus, abstain)
        least = threshold.score
        unknown = {name for name in names if closest_people(_name(model, name), corpus) is not None}
        print(_about_threshold(threshold, abstain), file=sys.stderr)
    if as_json:
        _print_json(
            [
                {
                    "name": name,
                    "answer": None if answer.log_probability < least or name in unknown else answer.text,
                    "log_probability": answer.log_probability,
                    "places": dict(likeliest),
                }
                for name, answer, likeliest in zip(names, answers, places, strict=True)
            ]
        )
        return
    for name, answer, likeliest in zip(names, answers, places, strict=True):
        if answer.log_probability < least or (abstain is not None and name in unknown):
            print(f"{name}: I do not know")
            continue
        rest = likeliest[1:] if likeliest and likeliest[0][0] == answer.text else likeliest
        others = ", ".join(f"{place} {_percent(p)}" for place, p in rest)
        joint = (
            "then" if rest is not likeliest else "written letter by letter; the likeliest train answers are"
        )
        print(
            f"{name}: {answer.text} ({_percent(math.exp(answer.log_probability))})"
            f"{f'; {joint} {others}' if others else ''}"
        )


def _about_threshold(threshold: "Threshold", precision: float) -> str:
    if math.isinf(threshold.score):
        return (
            f"no answer is given: on {threshold.rows} questions that were not trained on, no probability is"
            f" sure to reach {precision:.0%}"
        )
    return (
        f"answers are given from a probability of {math.exp(threshold.score):.0%} on: of {threshold.rows}"
        f" questions that were not trained on, {threshold.coverage:.0%} get one, and"
        f" {threshold.precision:.1%} of these are right"
    )


def _percent(p: float) -> str:
    return "<1%" if 0 < p < 0.005 else f"{p:.0%}"


def _name(model: "TrainedModel", typed: str) -> str:
    """The name in a typed name or question."""
    return model.question.name_in(normalise(typed)) or normalise(typed)


@app.command()
def predict(
    run: Run,
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS.tsv", help="Lines of QUESTION, or QUESTION TAB ANSWER.")
    ],
    output: Annotated[Path | None, typer.Option("-o", help="File to write; default: the terminal.")] = None,
    plugin: Plugins = None,
    checkpoint: Checkpoint = Which.last,
    as_json: AsJson = False,
) -> None:
    """Answer a file of questions, one prediction per line; score them if the file has the answers.

    Example: birthplace-lm predict runs/vanilla-... data/biographies/test.tsv -o test.txt
    """
    from birthplace_lm.inference.language_model import TrainedModel
    from birthplace_lm.inference.scores import score
    from birthplace_lm.runs.atomic_files import atomic_write_text

    file = read_questions(questions, "optional", "QUESTIONS")
    rows = file.rows
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"-o {output}: cannot be written; give a file name in an existing folder")
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    misfits = check_form(file, model.question, model.vocab) + check_characters(file, model.vocab)
    for warning in (*file.warnings, *misfits):
        print(f"warning: {warning}", file=sys.stderr)
    answers = model.answer_questions([row.question for row in rows])
    text = "".join(answer.line + "\n" for answer in answers)
    places = [row.place for row in rows]
    scored = all(place is not None for place in places)
    result = score([answer.text for answer in answers], [place or "" for place in places]) if scored else None
    if output is not None:
        atomic_write_text(output, text)
    if as_json:
        _print_json({**(result.to_dict() if result else {}), "predictions": text.splitlines()})
        return
    if output is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # as in a file
        sys.stdout.write(text)
    if result:
        line = f"Correct: {result.correct} out of {result.total}: {100 * result.exact_match:.1f}%"
        print(line, file=sys.stderr if output is None else sys.stdout)


def _print_json(content: object) -> None:
    print(json.dumps(_without_nan(content), ensure_ascii=False, indent=2, allow_nan=False))


def _without_nan(value: object) -> object:
    """With null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Format(StrEnum):
    """Format of a report."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, or one run directory.")],
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.table,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with tables and plots.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Save learning curves as .svg or .png.")] = None,
    curves_csv: Annotated[Path | None, typer.Option(help="Write all points of the curves as CSV.")] = None,
) -> None:
    """Compare the runs of a folder: settings, exact match, cost and state of each, and means over seeds.

    Example: birthplace-lm report runs --html report.html
    """
    from birthplace_lm.analysis.report import summary
    from birthplace_lm.analysis.report.collect import find_runs

    runs = find_runs(folder)
    if form is Format.csv:
        print(summary.as_csv(runs), end="")
    elif form is Format.json:
        print(summary.as_json(runs), end="")
    else:
        print(summary.as_tables(runs, markdown=form is Format.markdown))
    if page is not None:
        from birthplace_lm.analysis.report.page import write_page

        write_page(runs, folder, page)
    if figure is not None:
        from birthplace_lm.analysis.report.plots import save_learning_curves

        save_learning_curves(runs, figure)
    if curves_csv is not None:
        from birthplace_lm.analysis.report.curves import write_curves

        write_curves(runs, curves_csv)


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
    from birthplace_lm.analysis.explore.attention_theory import check_claims
    from birthplace_lm.analysis.explore.page import narrow_table_of_checks, table_of_checks, write_page
    from birthplace_lm.analysis.report.tables import show

    check_page(page)
    checks = check_claims()
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE
    show(narrow_table_of_checks(checks) if narrow else table_of_checks(checks))
    passed = sum(check.passed for check in checks)
    print(f"{passed} of {len(checks)} checks pass, each in {len(checks[0].measured)} dimensions")
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
    from birthplace_lm.inference.asking import warnings_about
    from birthplace_lm.inference.language_model import TrainedModel

    if out.suffix not in (".png", ".html") or not out.parent.is_dir() or out.is_dir():
        raise InputError(f"--out {out}: must be a .png or .html file in an existing folder")
    if not normalise(name):
        raise InputError("NAME is empty; give a full name")
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    for warning in warnings_about(run, [name], plugin or ()):
        print(f"warning: {warning}", file=sys.stderr)
    answer = write_attention(model, name, out)
    print(f"{name}: {answer.text} ({math.exp(answer.log_probability):.0%}); {out}")


@app.command()
def knowledge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories or exports.")],
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with figures and examples.")
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Measure what runs know: bits, confidence, and where their answers come from.

    Scores every place of train for every dev question; about a minute for 500 of each on two cores.

    Example: birthplace-lm knowledge runs/vanilla-... --html knowledge.html
    """
    from birthplace_lm.analysis.knowledge.page import tables_of, write_page
    from birthplace_lm.analysis.knowledge.study import study
    from birthplace_lm.analysis.report.tables import show

    check_page(page)
    for twice in {run for run in runs if [r.resolve() for r in runs].count(run.resolve()) > 1}:
        raise InputError(f"{twice}: named twice")
    studies = []
    for run in runs:
        try:
            studies.append(study(run, plugin or ()))
        except BirthplaceError as error:
            if len(runs) == 1:
                raise
            print(f"warning: left out: {error}", file=sys.stderr)
    if not studies:
        raise InputError("RUN: none of the runs can be measured")
    if page is not None:
        write_page(studies, page)
    if as_json:
        _print_json([made.to_dict() for made in studies])
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
    measured = [measure_capacity(run, plugin or ()) for run in runs]
    if page is not None:
        write_page(measured, page)
    if as_json:
        _print_json(
            [asdict(one) | {"bits": one.bits, "possible_bits": one.possible_bits} for one in measured]
        )
    else:
        show(capacity_table(measured))


@app.command()
def export(run: Run, out: NewFolder, plugin: Plugins = None, checkpoint: Checkpoint = Which.last) -> None:
    """Export a trained model: safetensors, configuration, vocabulary and model card.

    Example: birthplace-lm export runs/vanilla-... model && birthplace-lm ask model "Ada Lovelace"
    """
    from birthplace_lm.analysis.model_card import model_card
    from birthplace_lm.config.compose import load_saved
    from birthplace_lm.inference.export import export_model
    from birthplace_lm.inference.language_model import TrainedModel
    from birthplace_lm.runs.directory import RunDirectory

    trained = TrainedModel.from_run(run, plugin or (), checkpoint)
    config = load_saved(run / "config.yaml", plugin or ())
    metrics = RunDirectory(run, config).metrics
    card = model_card(config, trained.model.num_parameters, metrics, "Trained with birthplace_lm.")
    export_model(trained, config, out, card)
    print(f"{out}: exported; load it in Python with birthplace_lm.load({str(out)!r})")


@app.command()
def import_course(
    file: Annotated[Path, typer.Argument(metavar="FILE.params", help="A state_dict saved in the course.")],
    out: NewFolder,
    corpus: Annotated[Path, typer.Option(help="The wiki.txt of its pretraining.")],
    attention: Annotated[str, typer.Option(help="vanilla or synthesizer.")] = "vanilla",
    n_head: Annotated[int, typer.Option(min=1, help="Number of heads; the weights do not show it.")] = 8,
) -> None:
    """Import a student's saved model as an export for ask, predict and birthplace_lm.load.

    Example: birthplace-lm import-course vanilla.finetune.params model --attention vanilla --corpus wiki.txt
    """
    from birthplace_lm.analysis.model_card import model_card
    from birthplace_lm.inference.export import export_model
    from birthplace_lm.inference.import_course import read_course_model

    trained, config = read_course_model(file, attention, corpus, n_head)
    origin = f"Imported from {file.name}, saved in Stanford's CS224N (2021)."
    export_model(trained, config, out, model_card(config, trained.model.num_parameters, None, origin))
    print(f"{out}: {trained.model.num_parameters:,} parameters; ask it with birthplace-lm ask {out} NAME")


@app.command()
def make_biographies(
    out: NewFolder,
    people: Annotated[int, typer.Option(help="Number of people.")] = 420,
    seed: Annotated[int, typer.Option(min=0, help="Seed; another seed gives other people.")] = 0,
    exposures: Annotated[
        str, typer.Option(metavar="N,N,...", help="How often lines are repeated; people take turns.")
    ] = "1",
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Five facts about everybody, as in bioS, not the birthplace.")
    ] = False,
    biographies: Annotated[
        int, typer.Option(min=1, help="With --attributes: lines about each person, in other wordings.")
    ] = 1,
    permute: Annotated[
        bool, typer.Option("--permute", help="With --attributes: every line has its own order of facts.")
    ] = False,
    full_names: Annotated[
        bool, typer.Option("--full-names", help="With --attributes: the name for He and She.")
    ] = False,
    short: Annotated[
        bool, typer.Option("--short", help="With --attributes: bare values, no sentences.")
    ] = False,
) -> None:
    """Generate a synthetic corpus about invented people, with questions in the course's format.

    Example: birthplace-lm make-biographies /tmp/people --people 2000 --seed 1

    Example: birthplace-lm make-biographies /tmp/bios --attributes --biographies 5 --permute
    """
    from birthplace_lm.data.corpora import attributes as bios
    from birthplace_lm.data.corpora.synthetic import write_biographies

    try:
        counts = [int(count) for count in exposures.split(",")]
    except ValueError:
        raise InputError(
            f"--exposures {exposures}: must be whole numbers with commas, such as 1,10"
        ) from None
    if attributes:
        wording = bios.Wording(biographies, permute, full_names, short, counts)
        bios.write_attribute_biographies(out, people, seed, wording)
        print(f"{people} people in {out}; train with data=bios_university data.root={out}")
        return
    for option, chosen in (
        ("--biographies", biographies > 1),
        ("--permute", permute),
        ("--full-names", full_names),
        ("--short", short),
    ):
        if chosen:
            raise InputError(f"{option}: needs --attributes")
    write_biographies(out, people, seed, counts)
    print(f"{people} people in {out}; train with data=biographies data.root={out}")


@app.command()
def bench(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE...]", help="Overrides, as for train.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each benchmark, interleaved.")] = 5,
    steps: Annotated[int, typer.Option(min=8, help="Optimizer steps per measurement.")] = 12,
    attention: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Compare attention variants instead: names with commas, or all."),
    ] = None,
) -> None:
    """Benchmark training, answering and start-up on this machine. Run nothing else meanwhile.

    Example: birthplace-lm bench data=cs224n data.root=DIR

    Example: birthplace-lm bench --attention all
    """
    from birthplace_lm.cli.attention_costs import attention_costs
    from birthplace_lm.cli.bench import bench as measure

    logging.getLogger("birthplace_lm").setLevel(logging.ERROR)  # no progress of the stages
    if attention is None:
        print(measure(overrides or [], rounds, steps))
    else:
        print(attention_costs(attention, overrides or [], rounds, steps))


def main() -> None:
    """Run the command; an error is one line and its exit code."""
    protect_standard_streams(tolerated=BrokenPipeError)  # what a command prints is its result
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BirthplaceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(CheckpointError.exit_code)
