"""What a new run says about the nearest one: the advice, followed, leads to that run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from stage import METRICS, write_config

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.runs import nearest
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.runs.metrics import METRICS_FILE
from birthplace_lm.runs.nearest import MAX_RUNS, nearest_run


def identified(configure: Any, *overrides: str) -> DictConfig:
    config = configure(*overrides)
    return with_inputs(config, read_corpus(config.data, config.model.block_size).sha256)


def on_disk(config: DictConfig, state: str) -> Path:
    folder = run_directory(config)
    write_config(folder, config)
    (folder / "status.json").write_text(json.dumps({"state": state}))
    if state == "done":
        METRICS.write(folder / METRICS_FILE)
    return folder


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ([], ["stages.finetune.max_epochs=4", "trainer.gradient_clip_val=null"]),
        (["precision=bf16-mixed", "stages.finetune.learning_rate=1e-6"], []),
    ],
)
def test_the_advice_leads_to_the_unfinished_run(configure: Any, there: list[str], here: list[str]) -> None:
    folder = on_disk(identified(configure, *there), "preempted")
    line = nearest_run(identified(configure, *here))
    assert line is not None
    advice = re.fullmatch(
        rf"a new run; {folder} differs in .*; to continue that one instead, give (.*)", line
    )
    assert advice is not None, line
    assert run_directory(identified(configure, *here, *advice[1].split())) == folder


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ([], ["trainer=fsdp2"]),  # the hash holds a word that is no option
        ([], ["trainer.max_epochs=3"]),
    ],
)
def test_no_advice_that_would_not_lead_there(configure: Any, there: list[str], here: list[str]) -> None:
    on_disk(identified(configure, *there), "preempted")
    line = nearest_run(identified(configure, *here))
    assert line is not None
    assert line.endswith("; it is not finished")


def test_a_finished_run_is_extended_only_by_more_epochs(configure: Any) -> None:
    folder = on_disk(identified(configure), "done")
    longer = f"; it is done; to train that one longer instead, add extend_from={folder}"
    for epochs, ending in ((4, longer), (1, "; it is done")):
        line = nearest_run(identified(configure, f"stages.finetune.max_epochs={epochs}"))
        assert line is not None
        assert line.endswith(ending)


def test_the_nearest_of_several_is_named(configure: Any) -> None:
    on_disk(identified(configure, "stages.finetune.batch_size=7", "model.dropout=0.1"), "done")
    near = on_disk(identified(configure, "model.dropout=0.1"), "done")
    on_disk(identified(configure, "seed=1"), "done")
    line = nearest_run(identified(configure))
    assert line == f"a new run; {near} differs in model.dropout (0.1 there, 0 here); it is done"
    assert nearest_run(identified(configure, "attention=synthesizer")) is None
    assert nearest_run(identified(configure, f"run_dir={near.parent}/mine")) is None


@pytest.mark.parametrize(
    ("key", "theirs", "ours", "shown"),
    [
        (
            "a.spans._target_",
            "p.q.Random",
            "p.q.Entities",
            "a.spans._target_ (...Random there, ...Entities here)",
        ),
        (
            "a.schedule._target_",
            "p.cosine",
            "p.cosine_2021",
            "a.schedule._target_ (...cosine there, ...cosine_2021 here)",
        ),
        (
            "data.question",
            "In which town was {name} born?",
            "In which town was {name} raised?",
            "data.question (...as {name} born? there, ...as {name} raised? here)",
        ),
        ("model.dropout", 0, 0.1, "model.dropout (0 there, 0.1 here)"),
        ("data.corpus", "a" * 64, "b" * 64, "the content of data.corpus"),
        ("data.test", None, "b" * 64, "data.test (null there, bbbbbbbbbbbbbbbbbbbb here)"),
        ("trainer.strategy", None, "fsdp2", "trainer.strategy (another there, fsdp2 here)"),
    ],
)
def test_values_are_shown_from_where_they_differ(key: str, theirs: object, ours: object, shown: str) -> None:
    """Bug: of two long values the beginnings were shown, which are often equal."""
    assert nearest._shown(key, theirs, ours) == shown


def test_what_cannot_be_read_is_no_run(configure: Any, tmp_path: Path) -> None:
    folder = on_disk(identified(configure, "model.dropout=0.1"), "done")
    for number, text in enumerate(("", "seed: 0", "{", "- 1", "trainer: {}")):
        other = folder.with_name(f"{folder.name[:-8]}0000000{number}")
        other.mkdir()
        (other / "config.yaml").write_text(text)
    line = nearest_run(identified(configure))
    assert line is not None
    assert str(folder) in line
    assert MAX_RUNS > 5


def test_a_running_run_is_left_alone(configure: Any) -> None:
    folder = on_disk(identified(configure, "model.dropout=0.1"), "running")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
    hold += "print('locked', flush=True); input()"
    command = [sys.executable, "-S", "-c", hold, str(folder / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    line = nearest_run(identified(configure))
    holder.communicate("\n")
    assert line is not None
    assert line.endswith("; it is running")
