"""End a stage after a number of optimizer steps."""

from typing import Any

import lightning as L


class StepLimit(L.Callback):
    """Ends a stage after its `max_steps`. With a limit of its own Lightning counts the epoch that a run is
    resumed at the end of twice, and leaves one out.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if 0 <= pl_module.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_train_start(trainer, pl_module)
