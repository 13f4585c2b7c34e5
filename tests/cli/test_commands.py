"""The commands, on a run of a second."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from safetensors import safe_open
from stage import quick

import birthplace_lm
from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.curves import learning_curve
from birthplace_lm.cli.asking_commands import about_threshold
from birthplace_lm.data.corpora.attributes import Wording, write_attribute_biographies
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.inference import asking
from birthplace_lm.inference.confidence import Threshold
from birthplace_lm.inference.decoding import Answer, question_prompt
from birthplace_lm.inference.knowledge import log_probabilities
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.training import pipeline


@pytest.fixture(scope="module")
def run(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test changes."""
    root = tmp_path_factory.mktemp("commands")
    config = quick(people, root, f"run_dir={root / 'run'}", "stages.pretrain.check_val_every_n_epoch=1")
    pipeline.run(config, read_corpus(config.data, config.model.block_size))
    return root / "run"


def test_predict_answers_as_the_run_did(
    run: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "dev.txt"
    assert run_command("predict", run, people / "dev.tsv", "-o", out) == 0
    assert out.read_text() == (run / "predictions" / "dev.txt").read_text()
    dev = json.loads((run / "metrics.json").read_text())["dev"]
    share = {0: "0.0", 1: "12.5", 2: "25.0", 3: "37.5"}[dev["correct"]]
    assert capsys.readouterr().out == f"Correct: {dev['correct']} out of 8: {share}%\n"


def test_an_unfinished_run_is_named(
    run: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bug: predict, export and knowledge took it in silence, knowledge --pool as one of the seeds."""
    finished, run = run, Path(shutil.copytree(run, tmp_path / "unfinished"))
    status = run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"preempted"'))
    message = f"{run}: preempted in evaluate, not finished; its command continues it"
    for command, argument in (("predict", people / "dev.tsv"), ("export", tmp_path / "model")):
        assert run_command(command, run, argument) == 0
        assert f"warning: {message}" in capsys.readouterr().err
    assert run_command("knowledge", run, "--json") == 0
    assert f"warning: {message}" in capsys.readouterr().err
    assert run_command("knowledge", run, finished, "--pool", "--json") == 0
    captured = capsys.readouterr()
    assert f"warning: left out: {message}" in captured.err
    (pooled,) = json.loads(captured.out)
    assert len(pooled["people"]) == 8


def test_predict_takes_questions_without_places(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "q.tsv"
    questions.write_text("Where was Ada Lovelace born?\nWhere was Łukasz 漢 born?\n")
    assert run_command("predict", run, questions) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "Correct" not in captured.err


@pytest.mark.parametrize(
    ("old", "new"),
    [(" ", "\u00a0"), (" ", " \u2009 "), ("was", "wa\u00ads"), ("\n", '"\n"'), ("?", "\uff1f")],
)
def test_predict_reads_what_looks_alike_alike(
    run: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """Bug: non-breaking spaces and quotes around fields gave other answers, without a word."""
    text = (people / "dev.tsv").read_text(encoding="utf-8").replace(old, new)
    if new == '"\n"':
        text = '"' + text.replace("\t", '"\t"')[:-1]
    changed, asked = tmp_path / "q.tsv", []
    changed.write_text(text, encoding="utf-8")

    def answer(self: TrainedModel, questions: Sequence[str], precision: str = "float32") -> list[Answer]:
        asked.append([*questions])
        return [Answer("Paris", -1.0) for _ in questions]

    monkeypatch.setattr(TrainedModel, "answer_questions", answer)
    for file in (people / "dev.tsv", changed):
        assert run_command("predict", run, file) == 0
    assert asked[0] == asked[1]


def test_predict_says_what_it_drops_and_skips(
    run: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bug: characters were dropped in silence, and a header was answered."""
    text = (people / "dev.tsv").read_text(encoding="utf-8")
    questions, out = tmp_path / "q.tsv", tmp_path / "dev.txt"
    questions.write_text("question\tplace\n" + text.replace("Where", "\u0416here", 1), encoding="utf-8")
    assert run_command("predict", run, questions, "-o", out) == 0
    assert len(out.read_text().splitlines()) == len(text.splitlines())
    header, form, dropped = capsys.readouterr().err.splitlines()
    assert header == f"warning: {questions}:1: skipped as a header: question and place"
    assert form.startswith(f"warning: {questions}:2: 1 of 8 questions are not 'Where was {{name}} born?'")
    assert dropped.startswith(f"warning: {questions}:2: 1 of 8 questions have characters")
    assert dropped.endswith("'\u0416' U+0416")


def test_a_name_that_is_not_utf8(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a traceback."""
    assert run_command("ask", run, "Ada \udcff") == 0
    assert capsys.readouterr().out.startswith("Ada ")


def test_ask_and_load_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = birthplace_lm.load(run)
    assert not lm.model.training
    assert lm.model(torch.tensor([lm.vocab.encode("Where")])).shape == (1, 5, len(lm.vocab))
    names = ["Ada Lovelace", "Alan Turing", "Alan\u00a0  Turing", "Where was Alan Turing born?"]
    other, *same = [
        answer.log_probability for answer in lm.answer_questions([lm.question.about_typed(n) for n in names])
    ]
    assert same == pytest.approx([same[0]] * 3)
    assert other != pytest.approx(same[0])
    assert run_command("ask", run, *names) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        f"{name}: {answer}" for name, answer in zip(names, lm.answer(names), strict=True)
    ]


def test_an_answer_below_the_threshold_is_withheld(
    run: Path, people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = (people / "dev.tsv").read_text().split("\t")[0][len("Where was ") : -len(" born?")]
    lm = birthplace_lm.load(run)
    ((answer, log_p),) = [
        (a.text, a.log_probability) for a in lm.answer_questions([f"Where was {name} born?"])
    ]

    def ask(score: float, asked: str) -> tuple[str, Any]:
        monkeypatch.setattr(asking, "abstention_threshold", lambda *_: Threshold(score, 0.95, 0.5, 8))
        arguments = ("ask", str(run), asked, "--abstain", "0.9")
        assert run_command(*arguments) == 0
        line = capsys.readouterr().out.strip()
        assert run_command(*arguments, "--json") == 0
        ((result),) = json.loads(capsys.readouterr().out)
        return line, result["answer"]

    line, result = ask(log_p - 0.01, name)
    assert line.startswith(f"{name}: {answer} (")
    assert result == answer
    assert ask(log_p + 0.01, name) == (f"{name}: I do not know", None)
    assert ask(-math.inf, "Qq Zzz") == ("Qq Zzz: I do not know", None)  # nobody of the corpus


def test_the_likeliest_places_are_those_of_all(run: Path, configure: Any) -> None:
    lm = birthplace_lm.load(run)
    config = configure()
    corpus = read_corpus(config.data, config.model.block_size)
    places = sorted({row.place for row in corpus.train.rows if row.place})
    questions = [row.question for row in corpus.dev.rows]
    for question, likeliest in zip(questions, asking.likeliest_places(lm, corpus, questions), strict=True):
        prompt = question_prompt(lm.model, lm.vocab, question)
        scores = log_probabilities(lm.model, lm.vocab, [prompt] * len(places), places).exp().tolist()
        best = sorted(zip(scores, places, strict=True), reverse=True)[:3]
        assert [place for place, _ in likeliest] == [place for _, place in best]
        assert [p for _, p in likeliest] == pytest.approx([p for p, _ in best], rel=1e-3)


def test_a_small_threshold_is_not_zero() -> None:
    threshold = Threshold(score=math.log(0.002), precision=0.95, coverage=0.5, rows=8)
    assert "from a probability of <1% on" in about_threshold(threshold, 0.9)


def test_report_has_a_row_and_a_curve(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.svg"
    arguments = ["--format", "markdown", "--figure", str(picture)]
    assert run_command("report", run, *arguments) == 0
    result = json.loads((run / "metrics.json").read_text())
    dev = result["dev"]
    row = f"| vanilla | span\\_corruption | {dev['exact_match']:.1%} |"
    assert row in capsys.readouterr().out
    assert picture.read_text().lstrip().startswith("<?xml")
    (read,) = find_runs(run)
    curve = learning_curve(read)
    assert len(curve) == 4
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)
    assert read.metrics is not None
    assert curve[-1][0] == pytest.approx(read.metrics.characters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ask", "{tmp}/nowhere", "X"],
            "{tmp}/nowhere: not a run directory or an export: it has no config.yaml or config.json",
        ),
        (["knowledge", "{tmp}/nowhere"], "{tmp}/nowhere: not a run directory or an export"),
        (["report", "{tmp}", "--curve", "loss"], "--curve needs --figure FILE, and not --against"),
        (
            ["report", "{tmp}", "--curve", "los", "--figure", "x.svg"],
            "Invalid value for '--curve'",
        ),
        (["ask", "{tmp}"], "Missing argument 'NAME...'; see birthplace-lm ask --help"),
        (["ask", "--nosuch"], "No such option: --nosuch; see birthplace-lm ask --help"),
        (["nosuch"], "No such command 'nosuch'; see birthplace-lm --help"),
        (["report", "{tmp}"], "{tmp}: no run in it; a run has a config.yaml"),
        (["make-biographies", "{tmp}/x", "--people", "3"], "people=3: must be from 12 to 10000"),
        (["predict", "{tmp}/run", "{tmp}/none.tsv"], "QUESTIONS={tmp}/none.tsv: "),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run_command(*filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.replace("{tmp}", str(tmp_path)))
    assert error.count("\n") == 1


def test_what_is_exported_answers_alike(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert run_command("export", run, out) == 0
    names = ["README.md", "config.json", "model.safetensors", "vocab.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    dev = json.loads((run / "metrics.json").read_text())["dev"]
    assert f"| exact match on dev | {dev['correct']}/8 = " in (out / "README.md").read_text()
    assert str(run.parent) not in (out / "config.json").read_text()
    one, other = birthplace_lm.load(run), birthplace_lm.load(out)
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(one.model(ids), other.model(ids))
    assert one.vocab == other.vocab
    with safe_open(out / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(one.model.state_dict())
    capsys.readouterr()
    assert run_command("export", run, out) == 2
    assert capsys.readouterr().err == f"error: {out}: is not empty; choose a new folder\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("vocab.json", b"[]"),
        ("vocab.json", b"[" * 200_000),
        ("vocab.json", b"{}"),
        ("vocab.json", b"\xff"),
    ],
)
def test_a_damaged_export_is_one_line(
    run: Path, tmp_path: Path, file: str, content: bytes, capsys: Any
) -> None:
    out = tmp_path / "model"
    assert run_command("export", run, out) == 0
    (out / file).write_bytes(content)
    capsys.readouterr()
    assert run_command("ask", out, "Ada Lovelace") == 4
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: {out}: not a valid export: ")
    assert stderr.count("\n") == 1


def test_attention_is_drawn_as_a_picture_and_as_a_page(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.png", "a.html"):
        arguments = ("attention", str(run), "Ada Bee", "--out", str(tmp_path / name))
        assert run_command(*arguments) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.html").read_text().count('src="data:image/png;base64,') == 1  # of one layer


def test_make_biographies_takes_its_options(tmp_path: Path) -> None:
    options = ["--attributes", "--people", "20", "--seed", "3", "--short", "--exposures", "1,3"]
    assert run_command("make-biographies", tmp_path / "made", *options) == 0
    wording = Wording(short=True, exposures=(1, 3))
    write_attribute_biographies(tmp_path / "same", 20, 3, wording)
    made, same = ({f.name: f.read_bytes() for f in (tmp_path / d).iterdir()} for d in ("made", "same"))
    assert made == same
    assert made


def test_json_is_for_scripts(run: Path, people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("ask", run, "Ada Bee", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["name"] == "Ada Bee"
    assert result["answer"] == birthplace_lm.load(run).answer(["Ada Bee"])[0]
    assert run_command("predict", run, people / "dev.tsv", "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["correct"] == json.loads((run / "metrics.json").read_text())["dev"]["correct"]
    assert len(scored["predictions"]) == scored["total"] == 8
    assert scored["precision"] == "float32"
    arguments = ["predict", str(run), str(people / "dev.tsv"), "--json", "--precision", "bfloat16"]
    assert run_command(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "bfloat16"


def test_bfloat16_changes_the_last_digits_alone(run: Path) -> None:
    model = birthplace_lm.load(run)
    questions = [f"Where was {name} born?" for name in ("Ada Bee", "Cy Dee", "Eve Fo")]
    exact, rounded = (
        torch.tensor([answer.log_probability for answer in model.answer_questions(questions, precision)])
        for precision in ("float32", "bfloat16")
    )
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.2)
    with pytest.raises(ValueError, match="precision=bf16: must be float32 or bfloat16"):
        model.answer_questions(questions, "bf16")


def test_shells_complete_commands_and_runs(run: Path, tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        environment = {
            **os.environ, "_BIRTHPLACE_LM_COMPLETE": "complete_bash", "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }  # fmt: skip
        command = [
            sys.executable,
            "-c",
            "from birthplace_lm.cli.commands import app; app(prog_name='birthplace-lm')",
        ]
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
        return done.stdout.split()

    place = tmp_path / "place"
    (place / "runs").mkdir(parents=True)
    (place / "runs" / "mine").symlink_to(run)
    assert completed("birthplace-lm im") == ["import-course"]
    assert completed("birthplace-lm ask ru") == ["runs/mine"]


@pytest.mark.parametrize("length", [180, 400])
def test_a_name_longer_than_the_block_loses_its_beginning(
    length: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The likeliest places are those of the question that the answer is to."""
    assert run_command("ask", run, "Ada " * (length // 4)) == 0
    assert capsys.readouterr().out.startswith("Ada Ada ")
