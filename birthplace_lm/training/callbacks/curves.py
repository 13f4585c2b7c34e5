"""Training curves in TensorBoard."""

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim import Optimizer

from birthplace_lm.training.callbacks.cost import CostCounter

OVER_COST = ("loss", "val_loss", "exact_match")  # curves that are also drawn over their cost


class TrainingCurves(L.Callback):
    """Writes the training curves.

    Below the name of the stage, for every optimizer step that is logged: `loss` (the mean over its batches),
    `grad_norm`, `learning_rate`; `characters_per_second` since the last logged step, without validation;
    `characters`, the running total. PAD is not counted. They are written before the checkpoint of that step:
    Lightning's own come after, and a killed run would leave gaps. Below `by_characters` and
    `by_milliseconds`: `loss`, `val_loss` and `exact_match` over the cost of all stages so far.

    Args:
        stage: its name.
        cost: counts the cost of this stage.
        previous_cost: state of the counter of the stage whose weights this one starts from.

    Attributes:
        loss: mean over the batches of the last epoch whose loss is finite.
    """

    state_key = "curves"

    def __init__(self, stage: str, cost: CostCounter, previous_cost: Mapping[str, Any] | None = None) -> None:
        self.stage = stage
        self.cost = cost
        self.previous_cost = dict(previous_cost or {"characters": 0, "seconds": 0.0})
        self.loss = 0.0
        self._loss_sum, self._batches = 0.0, 0  # of this epoch
        self._losses: list[float] = []  # of the batches of this optimizer step
        self._learning_rate = 0.0
        self._logged_characters, self._logged_time, self._paused = 0, 0.0, 0.0
        self._step = 0
        # Points of the curves over cost: index of the curve, value, characters, milliseconds of this stage.
        self._points: list[tuple[int, float, int, int]] = []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # TensorBoard drops what was written before a resume, on every curve from the number of that step on.
        # Write it again here: a stage that has nothing left to train calls no later hook.
        self.load_state_dict(checkpoint["callbacks"][self.state_key])
        self._draw_over_cost(trainer, self._points, at_least=self._step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_characters, self._logged_time = self.cost.characters, time.perf_counter()
        self._step = trainer.global_step

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
        if trainer.logger is not None:
            curves = {f"{self.stage}/{name}": value for name, value in values.items()}
            trainer.logger.log_metrics(curves, step=self._step - 1)
        self._add_point(trainer, "loss", values["loss"])

    def _add_point(self, trainer: L.Trainer, name: str, value: float) -> None:
        point = (OVER_COST.index(name), value, self.cost.characters, round(1000 * self.cost.seconds))
        self._points.append(point)
        self._draw_over_cost(trainer, [point])

    def _draw_over_cost(
        self, trainer: L.Trainer, points: list[tuple[int, float, int, int]], at_least: int = 0
    ) -> None:
        """Write the points whose cost is `at_least` so much, on either axis."""
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        write = trainer.logger.experiment.add_scalar
        for curve, value, characters, milliseconds in points:
            for axis, cost in (
                ("by_characters", self.previous_cost["characters"] + characters),
                ("by_milliseconds", round(1000 * self.previous_cost["seconds"]) + milliseconds),
            ):
                if cost >= at_least:
                    write(f"{axis}/{OVER_COST[curve]}", value, cost)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            self.loss = self._loss_sum / self._batches
        self._loss_sum, self._batches = 0.0, 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_time += time.perf_counter() - self._paused
        if not trainer.sanity_checking:
            for name in ("val_loss", "exact_match"):
                self._add_point(trainer, name, float(trainer.callback_metrics[f"{self.stage}/{name}"]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "loss_sum": self._loss_sum,
            "batches": self._batches,
            "step": self._step,
            "previous_cost": self.previous_cost,
            "points": torch.tensor(self._points, dtype=torch.float64).reshape(-1, 4),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.loss, self._step = state_dict["loss"], state_dict["step"]
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]
        self.previous_cost = state_dict["previous_cost"]  # an extended run has no stage before
        points = state_dict["points"].tolist()
        self._points = [
            (int(curve), value, int(characters), int(milliseconds))
            for curve, value, characters, milliseconds in points
        ]
