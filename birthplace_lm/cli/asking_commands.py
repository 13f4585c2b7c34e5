"""The commands that ask a trained model: `ask` and `predict`."""

import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birthplace_lm.cli.options import AsJson, Checkpoint, Plugins, Run, Which, check_output, print_json
from birthplace_lm.data.corpora.consistency import check_characters, check_form
from birthplace_lm.data.corpora.qa_files import read_questions, with_equivalents
from birthplace_lm.data.questions import normalise
from birthplace_lm.errors import InputError
from birthplace_lm.runs.metrics import percent

if TYPE_CHECKING:
    from birthplace_lm.data.corpora.corpus import Corpus
    from birthplace_lm.inference.confidence import Threshold
    from birthplace_lm.inference.decoding import Answer
    from birthplace_lm.inference.language_model import TrainedModel

app = typer.Typer()


class Precision(StrEnum):
    """Of the matrix products of answering."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def ask(
    run: Run,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Full names.")],
    plugin: Plugins = None,
    checkpoint: Checkpoint = Which.last,
    abstain: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=0.999,
            metavar="PRECISION",
            help="Share of the answers that must be right; less certain ones become 'I do not know'.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the question of the model about people; print the answers with their probabilities.

    Where the corpus of the run is at hand, the three likeliest places of train follow. With --abstain 0.9 the
    answer is "I do not know" below a threshold on the probability. The threshold is chosen on held-out (or
    else dev) questions, so that at least 90 % of the answers above it are right, with 95 % confidence.

    Example: birthplace-lm ask runs/vanilla-... "Ada Lovelace" "Alan Turing" --abstain 0.9
    """
    from birthplace_lm.config.compose import config_file, load_config
    from birthplace_lm.inference.asking import corpus_of, likeliest_places, warnings_about
    from birthplace_lm.inference.language_model import TrainedModel

    for name in names:
        if len(os.fsencode(name)) < 256 and config_file(Path(name)).is_file():
            raise InputError(f"{name}: a second run directory; ask one run at a time")
        if not normalise(name):
            raise InputError("NAME is empty; give a full name")
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    config = load_config(run, plugin or ())
    for warning in warnings_about(run, config, names):
        print(f"warning: {warning}", file=sys.stderr)
    for name in dict.fromkeys(names):
        _, dropped = model.vocab.encode_known(model.vocab.replace_unknown(normalise(name)))
        if dropped:
            print(f"warning: {name}: the model does not know {' '.join(dropped)}", file=sys.stderr)
    questions = [*map(model.question.about_typed, names)]
    answers = model.answer_questions(questions)
    corpus = corpus_of(run, config)
    places = [[] for _ in names] if corpus is None else likeliest_places(model, corpus, questions)
    withheld = [False for _ in names]
    if abstain is not None:
        if corpus is None:
            raise InputError("--abstain: the corpus of the run is not there; it chooses the threshold")
        withheld = _withheld(model, corpus, names, answers, abstain)
    rows = [*zip(names, answers, places, withheld, strict=True)]
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "answer": None if unknown else answer.text,
                    "log_probability": answer.log_probability,
                    "places": dict(likeliest),
                }
                for name, answer, likeliest, unknown in rows
            ]
        )
    else:
        for name, answer, likeliest, unknown in rows:
            print(f"{name}: {'I do not know' if unknown else _described(answer, likeliest)}")


def _withheld(
    model: "TrainedModel", corpus: "Corpus", names: list[str], answers: list["Answer"], precision: float
) -> list[bool]:
    """Which answers are not given, for a precision of the others; the threshold is printed."""
    from birthplace_lm.data.corpora.people import closest_people
    from birthplace_lm.inference.asking import abstention_threshold

    threshold = abstention_threshold(model, corpus, precision)
    print(about_threshold(threshold, precision), file=sys.stderr)
    return [
        # The threshold says nothing about people whom the corpus does not have.
        answer.log_probability < threshold.score or closest_people(_name(model, name), corpus) is not None
        for name, answer in zip(names, answers, strict=True)
    ]


def _described(answer: "Answer", likeliest: list[tuple[str, float]]) -> str:
    """An answer and the likeliest places of train, each with its probability."""
    rest = likeliest[1:] if likeliest and likeliest[0][0] == answer.text else likeliest
    others = ", ".join(f"{place} {percent(p)}" for place, p in rest)
    joint = "then" if rest is not likeliest else "likeliest train answers:"
    more = f"; {joint} {others}" if others else ""
    return f"{answer.text} ({percent(math.exp(answer.log_probability))}){more}"


def about_threshold(threshold: "Threshold", precision: float) -> str:
    """Which answers `ask --abstain` gives."""
    if math.isinf(threshold.score):
        return (
            f"no answer is given: on {threshold.rows} questions that were not trained on, no threshold"
            f" reaches a precision of {precision:.0%} with 95 % confidence"
        )
    return (
        f"answers are given from a probability of {percent(math.exp(threshold.score))} on: of"
        f" {threshold.rows} questions that were not trained on, {threshold.coverage:.0%} get one, and"
        f" {threshold.precision:.1%} of these are right"
    )


def _name(model: "TrainedModel", typed: str) -> str:
    """The name in a typed name or question."""
    return model.question.name_or_text(normalise(typed))


@app.command()
def predict(
    run: Run,
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS.tsv", help="Lines of QUESTION, or QUESTION TAB ANSWER.")
    ],
    output: Annotated[Path | None, typer.Option("-o", help="File to write; default: the terminal.")] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Precision of matrix products; bfloat16 is faster if the processor supports it."),
    ] = Precision.float32,
    plugin: Plugins = None,
    checkpoint: Checkpoint = Which.last,
    as_json: AsJson = False,
) -> None:
    """Answer a file of questions, one prediction per line; score them if the file has the answers.

    Example: birthplace-lm predict runs/vanilla-... data/biographies/test.tsv -o test.txt
    """
    from birthplace_lm.inference.asking import unfinished_warnings
    from birthplace_lm.inference.language_model import TrainedModel
    from birthplace_lm.inference.scores import score
    from birthplace_lm.runs.atomic_files import atomic_write_text

    file = read_questions(questions, "optional", "QUESTIONS")
    check_output("-o", output)
    model = TrainedModel.from_run(run, plugin or (), checkpoint)
    file = with_equivalents(file, model.vocab)
    misfits = check_form(file, model.question) + check_characters(file, model.vocab)
    for warning in (*unfinished_warnings(run), *file.warnings, *misfits):
        print(f"warning: {warning}", file=sys.stderr)
    answers = model.answer_questions([row.question for row in file.rows], precision)
    text = "".join(answer.line + "\n" for answer in answers)
    places = [row.place for row in file.rows]
    scored = all(place is not None for place in places)
    result = score([answer.text for answer in answers], [place or "" for place in places]) if scored else None
    if output is not None:
        atomic_write_text(output, text)
    if as_json:
        scores = result.to_dict() if result else {}
        print_json({**scores, "precision": precision, "predictions": text.splitlines()})
        return
    if output is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # as in a file
        sys.stdout.write(text)
    if result:
        line = f"Correct: {result.correct} out of {result.total}: {100 * result.exact_match:.1f}%"
        print(line, file=sys.stderr if output is None else sys.stdout)
