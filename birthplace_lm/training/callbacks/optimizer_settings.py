"""Let the configuration decide the optimizer's settings, not the checkpoint."""

from typing import Any

import lightning as L


class ConfiguredOptimizerSettings(L.Callback):
    """Restores the configured learning rate, betas, decay ... after a checkpoint has brought its own.

    They differ where a finished stage is extended with other settings.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._groups = [{**group} for group in trainer.optimizers[0].param_groups]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        scheduler: Any = pl_module.lr_schedulers()
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._groups]
        factor = pl_module.lr_factor(scheduler.last_epoch)
        for group, settings in zip(trainer.optimizers[0].param_groups, self._groups, strict=True):
            group |= {**settings, "params": group["params"], "lr": settings["initial_lr"] * factor}
