"""Training curves."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import Optimizer

from birthplace_lm.training.callbacks.cost import CostCounter
from birthplace_lm.training.loggers import tensorboard_of

EVENT_FILES = "events.out.tfevents.*"


class TrainingCurves(L.Callback):
    """Writes the training curves.

    Below the name of the stage, for every optimizer step that is logged: `loss` (the mean over its batches),
    `grad_norm`, `learning_rate`; `characters_per_second` since the last logged step, without validation;
    `characters`, the running total. PAD is not counted. They are written before the checkpoint of that step:
    Lightning's own come after, and a killed run would leave gaps. Below `by_characters` and
    `by_seconds`: `loss`, `val_loss` and `exact_match` over the cost of all stages so far.

    A resumed stage cuts the event files to the sizes that they had when its checkpoint was saved, so that no
    point after the checkpoint is there twice.

    Args:
        stage: its name.
        directory: of the stage, with its event files.
        cost: counts the cost of this stage.
        previous_cost: state of the counter of the stage whose weights this one starts from.

    Attributes:
        loss: mean over the batches of the last epoch whose loss is finite; None before the first epoch ends.
    """

    state_key = "curves"

    def __init__(
        self,
        stage: str,
        directory: Path,
        cost: CostCounter,
        previous_cost: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage = stage
        self.directory = directory
        self.cost = cost
        self.previous_cost = dict(previous_cost or {"characters": 0, "seconds": 0.0})
        self.loss: float | None = None
        self._loss_sum, self._batches = 0.0, 0  # of this epoch
        self._losses: list[float] = []  # of the batches of this optimizer step
        self._learning_rate = 0.0
        self._logged_characters, self._logged_time = 0, 0.0
        self._paused: float | None = None  # since when there is no training
        self._step = 0
        self._earlier_files = [*directory.glob(EVENT_FILES)]  # Lightning makes its own before any hook

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        saved_sizes = checkpoint["callbacks"][self.state_key]["event_files"]
        for file in self._earlier_files:
            if file.name not in saved_sizes:
                file.unlink()
            elif file.stat().st_size > saved_sizes[file.name]:
                os.truncate(file, saved_sizes[file.name])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_characters, self._logged_time = self.cost.characters, time.perf_counter()
        self._paused = None
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._paused is not None:  # other callbacks also work after a validation
            self._logged_time += time.perf_counter() - self._paused
            self._paused = None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[-1]["lr"]  # of Muon's two groups the one of AdamW

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(trainer.callback_metrics[f"{self.stage}/loss"])
        if math.isfinite(loss):  # a step with another loss is skipped
            self._loss_sum += loss
            self._batches += 1
        self._losses.append(loss)
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            if self._step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log_step(trainer)
            self._losses = []

    def _log_step(self, trainer: L.Trainer) -> None:
        now, characters = time.perf_counter(), self.cost.characters
        speed = (characters - self._logged_characters) / max(now - self._logged_time, 1e-9)
        self._logged_characters, self._logged_time = characters, now
        values = {
            "loss": sum(self._losses) / len(self._losses),
            "grad_norm": float(trainer.callback_metrics[f"{self.stage}/grad_norm"]),
            "learning_rate": self._learning_rate,
            "characters_per_second": speed,
            "characters": float(characters),
        }
        curves = {f"{self.stage}/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=self._step - 1)
        self._draw_over_cost(trainer, "loss", values["loss"])

    def _draw_over_cost(self, trainer: L.Trainer, name: str, value: float) -> None:
        if (writer := tensorboard_of(trainer)) is not None:
            characters = self.previous_cost["characters"] + self.cost.characters
            seconds = self.previous_cost["seconds"] + self.cost.seconds
            writer.add_scalar(f"by_characters/{name}", value, characters)
            writer.add_scalar(f"by_seconds/{name}", value, round(seconds))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            self.loss = self._loss_sum / self._batches
        self._loss_sum, self._batches = 0.0, 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._paused is None:
            self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            for name in ("val_loss", "exact_match"):
                self._draw_over_cost(trainer, name, float(trainer.callback_metrics[f"{self.stage}/{name}"]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "loss_sum": self._loss_sum,
            "batches": self._batches,
            "step": self._step,
            "previous_cost": self.previous_cost,
            "event_files": {file.name: file.stat().st_size for file in self.directory.glob(EVENT_FILES)},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.loss, self._step = state_dict["loss"], state_dict["step"]
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]
        self.previous_cost = state_dict["previous_cost"]  # an extended run has no stage before
