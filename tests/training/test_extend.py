"""A finished run is trained longer with extend_from, as a run of its own."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from stage import without_waiting

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.identity import run_directory, with_inputs
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, StageResult
from birthplace_lm.training import pipeline

# Of this schedule the period does not depend on the length of the stage.
CONSTANT = (
    "schedule=cosine_2021",
    "stages.pretrain.schedule.warmup_positions=700",
    "stages.finetune.schedule.warmup_positions=700",
    "stages.finetune.schedule.final_positions=100000",
    "stages.pretrain.max_epochs=1",
    "model.dropout=0.1",
)


def train(config: DictConfig) -> tuple[RunMetrics, Path]:
    corpus = read_corpus(config.data, config.model.block_size)
    config = with_inputs(config, corpus.sha256)
    with without_waiting():
        pipeline.run(config, corpus)
    folder = run_directory(config)
    return RunMetrics.read(folder / METRICS_FILE), folder


def longer(configure: Any, *overrides: str) -> DictConfig:
    return configure(*CONSTANT, "stages.finetune.max_epochs=4", *overrides)


@pytest.mark.parametrize("ema", [0, 0.9])
def test_an_extended_run_ends_as_an_uninterrupted_one(configure: Any, ema: float) -> None:
    """As far as the schedule does not depend on the length of the stage."""
    average = f"stages.finetune.ema_decay={ema}"
    expected, uninterrupted = train(longer(configure, average))
    short, run = train(configure(*CONSTANT, average))
    extended, folder = train(longer(configure, average, f"extend_from={run}"))
    assert len({uninterrupted, run, folder}) == 3
    assert extended.weights_sha256 == expected.weights_sha256 != short.weights_sha256
    assert extended.extended_from == str(checkpoint.list_checkpoints(run / "finetune")[0])
    assert extended.stages["pretrain"] == short.stages["pretrain"]
    assert extended.stages["finetune"].steps == expected.stages["finetune"].steps
    assert extended.stages["finetune"].characters == expected.stages["finetune"].characters


def test_the_rate_is_that_of_the_new_configuration(configure: Any) -> None:
    _, run = train(configure(*CONSTANT))
    rate = ("stages.finetune.learning_rate=3e-4", "optimizer.weight_decay=0.5", f"extend_from={run}")
    config = longer(configure, *rate)
    _, folder = train(config)
    state = checkpoint.load(checkpoint.list_checkpoints(folder / "finetune")[0])
    [optimizer] = state["optimizer_states"]
    assert optimizer["param_groups"][-1]["initial_lr"] == 3e-4
    assert optimizer["param_groups"][0]["weight_decay"] == 0.5
    [schedule] = state["lr_schedulers"]
    assert schedule["base_lrs"][-1] == 3e-4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.finetune.max_epochs=4", "seed=1"), r"another seed \(0 there, 1 here\)"),
        (("stages.finetune.max_epochs=4", "stages.finetune.batch_size=4"), "stages.finetune.batch_size"),
        (("stages.finetune.max_epochs=4", "model.dropout=0.2"), "model.dropout"),
        ((), "give more stages.finetune.max_epochs"),
    ],
)
def test_another_run_is_not_extended(configure: Any, overrides: tuple[str, ...], message: str) -> None:
    _, run = train(configure(*CONSTANT))
    with pytest.raises(InputError, match=message):
        train(configure(*CONSTANT, *overrides, f"extend_from={run}"))


def test_stages_that_the_extension_leaves_out_count_nothing(configure: Any) -> None:
    """The finetuning of the earlier run was once reported as a stage of this one."""
    _, run = train(configure(*CONSTANT))
    extended, _ = train(
        configure(
            *CONSTANT,
            "stages.pretrain.max_epochs=2",
            "stages.finetune.enabled=false",
            f"extend_from={run / 'pretrain'}",
        )
    )
    assert extended.stages["finetune"] == StageResult()
    assert extended.stages["pretrain"].epochs == 2
