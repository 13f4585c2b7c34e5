"""The estimate of a dry run: steps that are left, times what a step takes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage import run

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.identity import with_inputs
from birthplace_lm.runs.metrics import STAGE_RESULT
from birthplace_lm.training import estimate as module
from birthplace_lm.training.estimate import estimate
from birthplace_lm.training.plan import StagePlan
from birthplace_lm.training.preflight import preflight
from birthplace_lm.training.stage import steps_done


def test_steps_left_times_seconds_per_step(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    corpus = read_corpus(config.data, config.model.block_size)
    plans = preflight(config, corpus)
    measured = estimate(plans, corpus)
    assert measured is not None
    assert measured.seconds > 0
    assert measured.steps >= 2
    assert measured.peak_bytes > 50 * 2**20  # torch alone is more
    assert not (tmp_path / "runs").exists()

    monkeypatch.setattr(module, "_measure", lambda plan, corpus, data: [0.25, 0.75])
    counted = estimate(plans, corpus)
    assert counted is not None
    assert [plan.total_steps for plan in plans] == [6, 6]
    assert counted.seconds == 0.5 * 12
    monkeypatch.setattr(LoadedCheckpoint, "read", lambda path: SimpleNamespace(step=4))
    begun = replace(plans[0], resume_checkpoint=tmp_path / "any-name.ckpt")  # bug: its name told the step
    resumed = estimate([begun], corpus)
    assert resumed is not None
    assert resumed.seconds == 0.5 * 2
    assert estimate([replace(plans[0], processes=2)], corpus) is None


def test_steps_that_are_not_taken_again(configure: Any) -> None:
    """Bug: a dry run with resume=never or overwrite=true counted the steps that the run would repeat."""
    made = run(configure())["stages"]

    def done(*overrides: str) -> list[int]:
        config = configure(*overrides)
        return [steps_done(plan, config.overwrite) for plan in _plans(config)]

    pretrain, finetune = (made[name]["steps"] for name in ("pretrain", "finetune"))
    assert done() == [pretrain, finetune]
    assert done("overwrite=true") == [pretrain, 0]  # the pretraining is shared
    for folder in (plan.directory for plan in _plans(configure())):
        (folder / STAGE_RESULT).unlink()  # not finished
    assert done() == [pretrain, finetune]
    assert done("resume=never") == [0, 0]


def _plans(config: Any) -> list[StagePlan]:
    corpus = read_corpus(config.data, config.model.block_size)
    return preflight(with_inputs(config, corpus.sha256), corpus)
