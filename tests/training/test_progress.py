"""What a run shows of its progress."""

import logging
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from birthplace_lm.training.callbacks.progress import ProgressBar, ProgressLines, progress


@pytest.mark.parametrize(
    ("seconds_per_step", "left"), [(1, "15:00"), (6, "1:30:00"), (600, "150:00:00")], ids=str
)
def test_a_long_rest_is_in_hours(
    seconds_per_step: float, left: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was 9000:00 for 150 hours."""
    trainer: Any = SimpleNamespace(global_step=0, callback_metrics={}, is_global_zero=True)
    module: Any = SimpleNamespace(total_steps=1000)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    lines = ProgressLines("finetune", logging.INFO)
    lines.on_train_start(trainer, module)
    now[0], trainer.global_step = 100 * seconds_per_step, 100
    with caplog.at_level(logging.INFO, "birthplace_lm"):
        lines.on_train_batch_end(trainer, module, None, None, 0)
    assert caplog.messages == [f"finetune: step 100 of 1000, {left} left"]


def test_a_bar_on_a_terminal_and_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(enabled: bool) -> list[type]:
        return [type(callback) for callback in progress("finetune", enabled)]

    assert kinds(True) == [ProgressLines]  # pytest captures stderr
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert kinds(True) == [ProgressBar, ProgressLines]
    assert kinds(False) == [ProgressLines]
