"""Loading a trained model elsewhere than where it was trained."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import birthplace_lm
from birthplace_lm.config.compose import compose, load_config, to_saved
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.export import export_model
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    tracked = ["logger=mlflow", "logger.mlflow.tracking_uri=sqlite:////here/mlflow.db"]
    config = compose(["model=tiny", "extend_from=/here/run", "data.replace=/here/other.tsv", *tracked])
    vocab = CharVocab.from_text("Where was Ada Bee born?")
    question = QuestionTemplate.parse(config.data.question)
    trained = TrainedModel(build_model(config.model, len(vocab)), vocab, question)
    export_model(trained, config, tmp_path / "out", "")
    return tmp_path / "out"


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run directory of a run that only pretrains, before its first checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    config = compose(["model=tiny", "stages.finetune.enabled=false"])
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return run


def test_a_run_that_was_copied_without_its_pretraining(unfinished: Path) -> None:
    """The message was "no checkpoint; run the training first"."""
    (unfinished / "pretrain").symlink_to("../pretrained/vanilla")
    shared = unfinished.parent / "pretrained" / "vanilla"
    with pytest.raises(CheckpointError, match=f"its checkpoints are in {shared}, which is missing; copy"):
        TrainedModel.from_run(unfinished)
    (unfinished / "pretrain").unlink()  # a copy without symbolic links
    (unfinished / "metrics.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"finished run are missing; .*birthplace-lm export"):
        TrainedModel.from_run(unfinished)


def test_a_run_without_a_checkpoint(unfinished: Path) -> None:
    with pytest.raises(CheckpointError, match="the command of this run continues it"):
        TrainedModel.from_run(unfinished)


def test_an_export_names_no_path_of_this_machine(exported: Path) -> None:
    """Bug: extend_from, data.replace and the loggers stayed."""
    assert "/here" not in (exported / "config.json").read_text()
    assert load_config(exported).data.replace == "other.tsv"


def test_a_damaged_configuration_is_named_with_its_line(exported: Path) -> None:
    """The message was "while parsing a flow node"."""
    text = (exported / "config.json").read_text()
    (exported / "config.json").write_text("".join(text.splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match=r"config\.json: line 4: \w"):
        load_config(exported)


def test_an_export_of_before_config_json_is_read(exported: Path) -> None:
    config = load_config(exported)
    (exported / "config.json").unlink()
    (exported / "config.yaml").write_text(to_saved(config))
    assert load_config(exported) == config
    assert TrainedModel.from_run(exported).answer(["Ada Bee"])


WINDOWS = """
import os, signal, sys
import torch  # whose own imports differ there
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGKILL"):
    delattr(signal, name)
for name in ("sysconf", "getuid", "fork", "lockf", "F_TEST", "sched_getaffinity", "O_NOFOLLOW"):
    delattr(os, name)
import birthplace_lm
print(birthplace_lm.load(sys.argv[1]).answer(["Ada Bee"]))
"""


def test_an_export_loads_without_what_only_posix_has(exported: Path) -> None:
    """`load` needed `fcntl`, so no export could be used on Windows."""
    done = subprocess.run([sys.executable, "-c", WINDOWS, exported], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")


def test_a_string_is_no_list_of_questions(exported: Path) -> None:
    """Bug: `answer_questions` answered every character of it."""
    model = TrainedModel.from_run(exported)
    for ask in (model.answer, model.answer_questions):
        with pytest.raises(TypeError, match="is a string; pass a list"):
            ask("Where was Ada Bee born?")


def test_log_probabilities_are_those_of_the_answers(exported: Path) -> None:
    model = TrainedModel.from_run(exported)
    questions, texts = ["Where was Ada Bee born?", "Where was Bo born?"], ["Bo", "Ada Bee"]
    expected = []
    for question, text in zip(questions, texts, strict=True):
        ids = torch.tensor([model.vocab.encode(f"{question}⁇{text}⁇")])
        with torch.no_grad():
            scores = model.model(ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        expected.append(float(scores[len(question) :].sum()))
    assert model.log_probabilities(questions, texts).tolist() == pytest.approx(expected, abs=1e-4)
    for impossible in ("\N{SNOWMAN}", "Bo⁇"):
        assert model.log_probabilities(questions[:1], [impossible]).tolist() == [-math.inf]
    with pytest.raises(ValueError, match="zip"):
        model.log_probabilities(questions, texts[:1])
    with pytest.raises(TypeError, match="answers is a string; pass a list"):
        model.log_probabilities(questions, "Rome")


def test_every_answer_of_every_question(exported: Path) -> None:
    model = birthplace_lm.load(exported, device="cpu")
    questions, texts = ["Where was Ada Bee born?", "Where was Bo born?"], ["Bo", "Ada Bee", "\N{SNOWMAN}"]
    table = model.answer_log_probabilities(questions, texts)
    for row, question in zip(table, questions, strict=True):
        torch.testing.assert_close(row, model.log_probabilities([question] * 3, texts), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="two are equal"):
        model.answer_log_probabilities(questions, ["Bo", "Bo"])
    with pytest.raises(TypeError, match="answers is a string; pass a list"):
        model.answer_log_probabilities(questions, "Bo")
    with pytest.raises(InputError, match="stage=pretrain: unknown; valid: None; an export holds one model"):
        birthplace_lm.load(exported, stage="pretrain")


def test_a_stage_that_is_not_there(exported: Path, unfinished: Path) -> None:
    """Bug: an export ignored it, and a misspelt one "had no checkpoint yet"."""
    with pytest.raises(InputError, match="stage=pretrain: unknown; valid: None; an export holds one model"):
        TrainedModel.from_run(exported, stage="pretrain")
    with pytest.raises(InputError, match="stage=pretran: unknown; valid: pretrain, finetune"):
        TrainedModel.from_run(unfinished, stage="pretran")
