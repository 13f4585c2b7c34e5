"""Progress of a stage: a bar on a terminal, lines in log files and pipes."""

import logging
import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

log = logging.getLogger(__name__)


class ProgressBar(L.Callback):
    """One bar for the whole stage, with the time left, loss and exact match of the last validation."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=pl_module.total_steps,
                initial=trainer.global_step,
                desc=self.stage,
                unit="step",
                dynamic_ncols=True,
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(_numbers(trainer, self.stage), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressLines(L.Callback):
    """Logs a line every few seconds, for log files and pipes.

    Args:
        stage: its name.
        level: logging level; lines below INFO go to the log file only.
        every_seconds: time between two lines.
    """

    def __init__(self, stage: str, level: int, every_seconds: float = 15.0) -> None:
        self.stage = stage
        self.level = level
        self.every_seconds = every_seconds
        self._started = self._logged = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._logged = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if now - self._logged >= self.every_seconds and trainer.is_global_zero:
            self._logged = now
            step, total = trainer.global_step, pl_module.total_steps
            left = (now - self._started) / max(step - self._first_step, 1) * (total - step)
            parts = [f"step {step} of {total}", _numbers(trainer, self.stage)]
            parts.append(f"{tqdm.format_interval(left)} left")
            log.log(self.level, "%s: %s", self.stage, ", ".join(filter(None, parts)))


def progress(stage: str, enabled: bool) -> list[L.Callback]:
    """A bar on a terminal or in a notebook, otherwise lines; the log file always gets lines."""
    interactive = hasattr(sys, "ps1")  # the prompt of Python, and of a notebook, whose output is no terminal
    if enabled and (interactive or sys.stderr.isatty()):
        return [ProgressBar(stage), ProgressLines(stage, logging.DEBUG)]
    return [ProgressLines(stage, logging.INFO)]


def _numbers(trainer: L.Trainer, stage: str) -> str:
    metrics = trainer.callback_metrics
    names = [name for name in ("loss", "exact_match") if f"{stage}/{name}" in metrics]
    return ", ".join(f"{name} {float(metrics[f'{stage}/{name}']):.3f}" for name in names)
