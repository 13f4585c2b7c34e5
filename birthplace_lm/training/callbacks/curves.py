"""What a stage costs, and its curves in TensorBoard."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

CURVES_STATE = "training_curves"
CURVES = ("loss", "val_loss", "exact_match")  # that are shown over their cost too


class TrainingCurves(L.Callback):
    """Counts what a stage has cost, over all its interruptions, and writes the training curves.

    Under the name of the stage, for every optimizer step that is logged: `loss` (the mean over its batches),
    `grad_norm`, `learning_rate`; `characters_per_second` since the one before, validation left out;
    `characters`, the running total. PAD is not counted. They are written before the checkpoint of that step:
    Lightning's own come after, and a killed run would leave gaps. Under `by_characters` and
    `by_milliseconds` the same `loss`, `val_loss` and `exact_match` over what all stages so far have cost.

    Args:
        stage: its name.
        before: state of the meter of the stage that this one goes on from.
    """

    def __init__(self, stage: str, before: Mapping[str, Any] | None = None) -> None:
        self.stage = stage
        self.before = {"characters": 0, "seconds": 0.0, **(before or {})}
        self.characters = 0
        self.seconds = 0.0
        self.loss = 0.0
        self._loss_sum, self._batches = 0.0, 0
        self._losses: list[float] = []  # of the batches of this optimizer step
        self._window, self._since, self._started = 0, 0.0, 0.0
        self._step = 0
        # Of the curves over cost: which, its value, characters and milliseconds of this stage.
        self._points: list[tuple[int, float, int, int]] = []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # TensorBoard drops what was written before a resume, on every curve from the number of that step on.
        # Here, as Lightning loads before or after on_fit_start, and trains only if there is something left.
        self.load_state_dict(checkpoint["callbacks"][self.state_key])
        self._show_by_cost(trainer, first=0, least=self._step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()
        self._window, self._since = 0, self._started
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count = int(batch["characters"])
        self.characters += count
        self._window += count
        loss = float(trainer.callback_metrics[f"{self.stage}/loss"])
        self._loss_sum += loss
        self._batches += 1
        self._losses.append(loss)
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            if self._step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._write(trainer)
            self._losses = []

    def _write(self, trainer: L.Trainer) -> None:
        now = time.perf_counter()
        values = {
            "loss": sum(self._losses) / len(self._losses),
            "grad_norm": float(trainer.callback_metrics[f"{self.stage}/grad_norm"]),
            "learning_rate": float(trainer.callback_metrics[f"{self.stage}/learning_rate"]),
            "characters_per_second": self._window / max(now - self._since, 1e-9),
            "characters": float(self.characters),
        }
        self._window, self._since = 0, now
        if trainer.logger is not None:
            curves = {f"{self.stage}/{name}": value for name, value in values.items()}
            trainer.logger.log_metrics(curves, step=self._step - 1)
        self._write_by_cost(trainer, "loss", values["loss"])

    def _write_by_cost(self, trainer: L.Trainer, name: str, value: float) -> None:
        """The same curve over what has been read, and over the time that took, interruptions left out."""
        now = time.perf_counter()
        seconds = self.seconds + (now - self._started if self._started else 0.0)
        self._points.append((CURVES.index(name), value, self.characters, round(1000 * seconds)))
        self._show_by_cost(trainer, first=-1)

    def _show_by_cost(self, trainer: L.Trainer, first: int, least: int = 0) -> None:
        """Write the points from the first on that lie at `least` or beyond."""
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        write = trainer.logger.experiment.add_scalar
        for curve, value, characters, milliseconds in self._points[first:]:
            for axis, cost, earlier in (
                ("by_characters", characters, self.before["characters"]),
                ("by_milliseconds", milliseconds, round(1000 * self.before["seconds"])),
            ):
                if earlier + cost >= least:
                    write(f"{axis}/{CURVES[curve]}", value, earlier + cost)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            self.loss = self._loss_sum / self._batches
        self._loss_sum, self._batches = 0.0, 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused
        if not trainer.sanity_checking:
            for name in ("val_loss", "exact_match"):
                self._write_by_cost(trainer, name, float(trainer.callback_metrics[f"{self.stage}/{name}"]))

    @property
    def state_key(self) -> str:
        """The key of its state in checkpoints, which outlives a renamed class."""
        return CURVES_STATE

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        seconds = self.seconds + (now - self._started if self._started else 0.0)
        return {
            "characters": self.characters,
            "seconds": seconds,
            "loss": self.loss,
            "loss_sum": self._loss_sum,
            "batches": self._batches,
            "step": self._step,
            "points": torch.tensor(self._points, dtype=torch.float64).reshape(-1, 4),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.characters, self.seconds = state_dict["characters"], state_dict["seconds"]
        self.loss = state_dict["loss"]
        self._loss_sum, self._batches = state_dict["loss_sum"], state_dict["batches"]
        self._step = state_dict["step"]
        points = state_dict["points"].tolist()
        self._points = [(int(curve), value, int(read), int(took)) for curve, value, read, took in points]
