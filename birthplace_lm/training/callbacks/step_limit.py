"""End a stage after a number of optimizer steps."""

from typing import Any

import lightning as L


class StepLimit(L.Callback):
    """Ends a stage after `max_steps` optimizer steps.

    With `Trainer(max_steps=...)` Lightning counts an epoch twice if a run is resumed at its end, and then
    leaves one epoch out.

    Args:
        max_steps: -1 for no limit but that of the epochs.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if 0 <= self.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_train_start(trainer, pl_module)
