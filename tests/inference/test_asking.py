"""Warnings before a model is asked."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage import write_config

from birthplace_lm.config.compose import load_config
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.inference.asking import abstention_threshold, warnings_about
from birthplace_lm.inference.decoding import Answer
from birthplace_lm.runs.identity import with_inputs


@pytest.fixture
def run(configure: Any, tmp_path: Path) -> Path:
    """What `ask` reads of a run; it needs no model."""
    config = configure()
    corpus = read_corpus(config.data, config.model.block_size)
    write_config(tmp_path / "run", with_inputs(config, corpus.sha256))
    return tmp_path / "run"


def warnings(run: Path, names: list[str]) -> list[str]:
    return warnings_about(run, load_config(run), names)


def names(people: Path, split: str) -> list[str]:
    return [line.split("\t")[0][10:-6] for line in (people / f"{split}.tsv").read_text().splitlines()]


def test_people_of_the_corpus_are_asked_in_silence(run: Path, people: Path) -> None:
    everybody = [name for split in ("train", "dev", "test") for name in names(people, split)]
    assert len(everybody) == 24
    assert warnings(run, everybody) == []


def test_a_misspelt_name_gets_the_closest(run: Path, people: Path) -> None:
    for name in names(people, "dev")[:2]:
        wrong = name[:-1] + ("x" if name[-1] != "x" else "y")
        (warning,) = warnings(run, [wrong])
        assert warning.startswith(f"{wrong}: the corpus has nobody of this name; did you mean {name}")
        (warning,) = warnings(run, [name[:-1]])
        assert f"did you mean {name}" in warning
        (warning,) = warnings(run, [name.lower()])
        assert f"did you mean {name}" in warning
        (warning,) = warnings(run, [name.split()[-1]])  # the surname
        assert name in warning
    assert warnings(run, ["Qq Zzz"]) == ["Qq Zzz: the corpus has nobody of this name"]


def test_the_closest_is_a_name(run: Path, people: Path) -> None:
    """Bug: what stood before any full stop counted as a name, so that a suggestion told the answer."""
    everybody = {name for split in ("train", "dev", "test") for name in names(people, split)}
    for surname in {name.split()[-1] for name in everybody}:
        (warning,) = warnings(run, [surname])
        _, _, suggested = warning.partition("did you mean ")
        assert {*re.split(", | or ", suggested.rstrip("?"))} <= everybody


def test_a_whole_question_is_a_name_too_many(run: Path, people: Path) -> None:
    name = names(people, "dev")[0]
    assert warnings(run, [f"Where was {name} born?"]) == [
        f"Where was {name} born?: a whole question; a name is enough"
    ]
    assert len(warnings(run, ["Where was Qq Zzz born?"])) == 2
    (warning,) = warnings(run, [f"Where does {name} come from?"])
    assert "a question that the model was not trained on" in warning


def test_other_data_says_nothing_about_names(run: Path, people: Path, tmp_path: Path) -> None:
    """A moved or changed corpus, and an export, whose configuration names no folder."""
    for data in ("data.root: null", f"data.root: {tmp_path}"):
        text = (run / "config.yaml").read_text()
        key, value = data.split(": ")
        (run / "config.yaml").write_text(text.replace(f"root: {people}", f"{key[5:]}: {value}"))
        assert warnings(run, ["Qq Zzz"]) == []
        (run / "config.yaml").write_text(text)
    assert len(warnings(run, ["Qq Zzz"])) == 1


@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_an_unfinished_run_is_named(run: Path, state: str) -> None:
    status = {"state": state, "stage": "finetune", "error": None, "pid": 1}
    (run / "status.json").write_text(json.dumps(status))
    (warning,) = warnings(run, [])
    assert warning == f"{run}: {state} in finetune, not finished; its command continues it"
    (run / "status.json").write_text(json.dumps({**status, "state": "done"}))
    assert warnings(run, []) == []


def test_a_question_that_train_repeats_chooses_no_threshold(configure: Any) -> None:
    """Bug: the threshold was chosen by questions that the model was trained on, too."""

    class Memory:
        def answer_questions(self, questions: list[str]) -> list[Answer]:
            return [Answer("", 0.0) for _ in questions]

    config = configure()
    corpus = read_corpus(config.data, config.model.block_size)
    dev = replace(corpus.dev, rows=[*corpus.dev.rows, *corpus.train.rows])
    trained: Any = Memory()
    assert abstention_threshold(trained, replace(corpus, dev=dev), 0.5).rows == len(corpus.dev.rows)
