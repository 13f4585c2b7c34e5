"""End a stage after a time."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer


class TimeLimit(Timer):
    """Lightning's Timer, for a stage that is resumed when its time is used up.

    Lightning's ends such a stage before training begins, without the hooks at the end of training: EMA would
    leave the raw weights.
    """

    state_key = Timer.__qualname__

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: training begins in any case."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.on_train_batch_end(trainer)
