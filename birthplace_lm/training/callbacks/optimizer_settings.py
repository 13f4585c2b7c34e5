"""Let the configuration decide the optimizer's settings, not the checkpoint, and check its state."""

from collections.abc import Iterable
from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

from birthplace_lm.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")  # the state of our optimizers: one number for each weight


class ConfiguredOptimizerSettings(L.Callback):
    """Restores the configured learning rate, betas, decay ... after a checkpoint has brought its own.

    They differ where a finished stage is extended with other settings. What else a parameter group holds may
    be state of a user's optimizer, and stays that of the checkpoint.

    Args:
        names: the numbers of the optimizer that the configuration names; the learning rate is always among
            them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {*names, "lr", "initial_lr"}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        self._groups = [{name: group[name] for name in self._names & group.keys()} for group in groups]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        _check_state(trainer.optimizers[0])
        scheduler: Any = pl_module.lr_schedulers()
        scheduler.base_lrs = [settings["initial_lr"] for settings in self._groups]
        factor = pl_module.lr_factor(scheduler.last_epoch)
        for group, settings in zip(trainer.optimizers[0].param_groups, self._groups, strict=True):
            group |= {**settings, "lr": settings["initial_lr"] * factor}


def _check_state(optimizer: Optimizer) -> None:
    """Check the moments of a checkpoint: torch's fused AdamW writes beyond the end of smaller ones.

    Raises:
        CheckpointError: one has another shape than its weight.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in (name for name in MOMENTS if name in state):
                value = state[name]
                fits = isinstance(value, Tensor) and value.shape == parameter.shape
                if not fits or value.dtype != parameter.dtype or value.layout != parameter.layout:
                    raise CheckpointError(
                        f"resume: {name} of the optimizer does not fit its weight of shape"
                        f" {tuple(parameter.shape)}: the checkpoint is damaged; remove it, or give"
                        " resume=never"
                    )
