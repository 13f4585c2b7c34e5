"""What happens around training: measuring, saving, showing progress and sample answers."""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from birthplace_lm import checkpoint
from birthplace_lm.data.corpus import check_unchanged

log = logging.getLogger(__name__)


class Meter(L.Callback):
    """Counts what a stage has cost, over all its interruptions, and logs the speed.

    Logs `STAGE/characters_per_second` over the time since the last logged step, validation left out, and
    `STAGE/characters`, the running total; PAD is not counted.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.characters = 0
        self.seconds = 0.0
        self.loss = 0.0
        self._loss_sum, self._batches = 0.0, 0
        self._window, self._since, self._started = 0, 0.0, 0.0
        self._logged = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()
        self._window, self._since = 0, self._started

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count = int(batch["characters"])
        self.characters += count
        self._window += count
        self._loss_sum += float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        self._batches += 1
        step = trainer.global_step
        if step != self._logged and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._logged = step
            now = time.perf_counter()
            speed = self._window / max(now - self._since, 1e-9)
            self._window, self._since = 0, now
            pl_module.log(f"{self.stage}/characters_per_second", speed)
            pl_module.log(f"{self.stage}/characters", float(self.characters))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            mean = torch.tensor(self._loss_sum / self._batches, device=pl_module.device)
            self.loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        self._loss_sum, self._batches = 0.0, 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        seconds = self.seconds + (now - self._started if self._started else 0.0)
        return {
            "characters": self.characters,
            "seconds": seconds,
            "loss": self.loss,
            "loss_sum": self._loss_sum,
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.characters, self.seconds = state_dict["characters"], state_dict["seconds"]
        self.loss = state_dict["loss"]
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]


class Checkpoints(L.Callback):
    """Saves at optimizer-step boundaries and when the stage ends; keeps the newest few.

    Within a window of accumulated batches nothing is saved: the gradients so far are not in a checkpoint.
    """

    def __init__(self, directory: Path, every_n_steps: int, keep: int, content: Mapping[str, Any]) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.content = content
        self._saved_step = -1

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["birthplace_lm"] = dict(self.content)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        check_unchanged(checkpoint["birthplace_lm"]["data"], self.content["data"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._saved_step and step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(checkpoint.path_of(self.directory, trainer.global_step))
        if trainer.is_global_zero:
            for old in checkpoint.saved_in(self.directory)[self.keep :]:
                trainer.strategy.checkpoint_io.remove_checkpoint(old)


class SampleAnswers(L.Callback):
    """A table of the same questions after every validation: what the model says, and what is true."""

    def __init__(self, stage: str, count: int = 10) -> None:
        self.stage = stage
        self.count = count
        self._rows: list[str] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 1 and batch_idx == 0:
            self._rows = [
                f"| {question} | {_cell(answer.text)} | {place} | {answer.log_probability:.2f} |"
                for (question, place), answer in zip(batch[: self.count], outputs[: self.count], strict=True)
            ]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = trainer.logger
        if isinstance(logger, TensorBoardLogger) and self._rows and not trainer.sanity_checking:
            head = "| question | answer | gold | log-probability (nats) |\n| --- | --- | --- | --- |\n"
            logger.experiment.add_text(
                f"{self.stage}/answers", head + "\n".join(self._rows), trainer.global_step
            )


class ProgressBar(L.Callback):
    """One bar for the whole stage, with the time left, the loss and the last exact match on dev."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            total = int(trainer.estimated_stepping_batches)
            self._bar = tqdm(
                total=total, initial=trainer.global_step, desc=self.stage, unit="step", dynamic_ncols=True
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
    """A line every few seconds, for log files and pipes.

    Args:
        level: of logging; below INFO the lines are for the log file alone.
    """

    def __init__(self, stage: str, level: int, every_seconds: float = 15.0) -> None:
        self.stage = stage
        self.level = level
        self.every_seconds = every_seconds
        self._started = self._said = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._said = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if now - self._said >= self.every_seconds and trainer.is_global_zero:
            self._said = now
            step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
            left = int((now - self._started) / max(step - self._first_step, 1) * (total - step))
            numbers = _numbers(trainer, self.stage)
            text = f"step {step} of {total}, {numbers}, {left // 60}:{left % 60:02d} left"
            log.log(self.level, "%s: %s", self.stage, text)


def progress(stage: str, enabled: bool) -> list[L.Callback]:
    """A bar on a terminal, elsewhere lines; the log file gets lines in either case."""
    if enabled and sys.stderr.isatty():
        return [ProgressBar(stage), ProgressLines(stage, logging.DEBUG)]
    return [ProgressLines(stage, logging.INFO)]


def _numbers(trainer: L.Trainer, stage: str) -> str:
    known = trainer.callback_metrics
    names = ("loss", "exact_match")
    return ", ".join(f"{n} {float(known[f'{stage}/{n}']):.3f}" for n in names if f"{stage}/{n}" in known)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
