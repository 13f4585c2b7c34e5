"""Count what a stage costs: characters and seconds."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L


class CostCounter(L.Callback):
    """Counts the cost of a stage over all its interruptions; comes first among the callbacks.

    Attributes:
        characters: read in training, PAD not counted.
    """

    state_key = "cost"

    def __init__(self) -> None:
        self.characters = 0
        self._seconds = 0.0  # up to the last resume
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Time in training and validation."""
        return self._seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.characters += batch["characters"]

    def state_dict(self) -> dict[str, Any]:
        return {"characters": self.characters, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.characters, self._seconds = state_dict["characters"], state_dict["seconds"]
