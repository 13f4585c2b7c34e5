"""Optional callbacks that watch a metric of the validations: early stopping, and the best checkpoint."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from birthplace_lm.runs import checkpoint

log = logging.getLogger(__name__)


class MetricMonitor(L.Callback):
    """Remembers the best value of a validation metric; the base of the callbacks below.

    Args:
        monitor: name of the metric without the stage: `exact_match` or `val_loss`.
        mode: "max" for `exact_match`, where larger is better, "min" for `val_loss`.
        min_delta: least change that counts as an improvement.

    Attributes:
        best: the best finite value so far; None before there is one.
        best_step: optimizer steps taken before it.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if monitor not in ("exact_match", "val_loss"):
            raise ValueError(f"monitor={monitor}: unknown; valid: exact_match, val_loss")
        better = "max" if monitor == "exact_match" else "min"
        if mode != better:
            raise ValueError(f"mode={mode}: must be {better} for monitor={monitor}")
        if min_delta < 0:
            raise ValueError(f"min_delta={min_delta}: must be 0 or more")
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_step = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[f"{pl_module.stage}/{self.monitor}"])
        better = self.best is None or self.sign * (value - self.best) > self.min_delta
        improved = better and math.isfinite(value)
        if improved:
            self.best, self.best_step = value, trainer.global_step
        self.validated(trainer, improved)

    def validated(self, trainer: L.Trainer, improved: bool) -> None:
        """Called after every validation."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


class EarlyStopping(MetricMonitor):
    """Ends a stage after `patience` validations in a row without an improvement.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
    """

    state_key = "early_stopping"

    def __init__(self, monitor: str, mode: str, patience: int, min_delta: float) -> None:
        super().__init__(monitor, mode, min_delta)
        if patience < 1:
            raise ValueError(f"patience={patience}: must be 1 or more")
        self.patience = patience
        self.waited = 0  # validations since the best

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.waited >= self.patience:  # stopped already, and killed before the stage had ended
            trainer.should_stop = True

    def validated(self, trainer: L.Trainer, improved: bool) -> None:
        self.waited = 0 if improved else self.waited + 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                best = "none" if self.best is None else f"{self.best:.4g}, after step {self.best_step}"
                log.info("early stopping: the best finite %s was %s", self.monitor, best)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.waited = state_dict["waited"]


class BestCheckpoint(MetricMonitor):
    """Saves the weights of the best validation as `best.ckpt`, beside the checkpoints of exact resume.

    It comes before the callback of the moving average, so the weights are those that were validated. For that
    reason no run resumes from it: the callbacks after it have not yet seen the end of the validation.
    """

    state_key = "best_checkpoint"

    def __init__(self, monitor: str, mode: str) -> None:
        super().__init__(monitor, mode)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.best is None and trainer.is_global_zero:  # of an earlier attempt
            checkpoint.remove(checkpoint.best_path(Path(trainer.default_root_dir)))

    def validated(self, trainer: L.Trainer, improved: bool) -> None:
        if improved:
            trainer.save_checkpoint(checkpoint.best_path(Path(trainer.default_root_dir)))
