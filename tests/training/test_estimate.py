"""The estimate of a dry run: steps that are left, times what a step takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.training import estimate as module
from birthplace_lm.training.estimate import estimate
from birthplace_lm.training.preflight import preflight


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
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "step-00000004.ckpt").touch()
    resumed = estimate([replace(plans[0], directory=folder)], corpus)
    assert resumed is not None
    assert resumed.seconds == 0.5 * 2
    assert estimate([replace(plans[0], processes=2)], corpus) is None
