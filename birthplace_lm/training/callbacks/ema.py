"""EMA: an exponential moving average of the weights."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor


class EMA(L.Callback):
    """Validates with an exponential moving average of the weights and ends the stage with it.

    Args:
        decay: factor of the average in every optimizer step n; (1 + n) / (10 + n) as long as that is less.

    Source: Polyak and Juditsky 1992; the beginning as in TensorFlow's ExponentialMovingAverage.
    """

    state_key = "ema"

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._steps = self._last_step = 0
        self._average: list[Tensor] = []
        self._ended = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = [p.detach() for p in pl_module.parameters()]
        average = self._average or parameters
        self._average = [a.to(p.device, copy=True) for a, p in zip(average, parameters, strict=True)]
        self._last_step = trainer.global_step
        if self._ended:  # and is extended: its last checkpoint has them swapped
            self._swap(pl_module)
            self._ended = False

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._steps += 1
            decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
            torch._foreach_lerp_(self._average, [p.detach() for p in pl_module.parameters()], 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average:  # empty before training
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module)
        self._ended = True

    @torch.no_grad()
    def _swap(self, pl_module: L.LightningModule) -> None:
        for parameter, average in zip(pl_module.parameters(), self._average, strict=True):
            current = parameter.clone()
            parameter.copy_(average)
            average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "steps": self._steps, "ended": self._ended}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._average, self._steps = state_dict["average"], state_dict["steps"]
        self._ended = state_dict["ended"]
