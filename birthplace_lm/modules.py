"""The LightningModule around the GPT, the same for every stage and attention."""

import hashlib
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from birthplace_lm.data.rows import Batch
from birthplace_lm.error import NumericError
from birthplace_lm.generate import answer
from birthplace_lm.metrics import ExactMatch
from birthplace_lm.models.gpt import GPT
from birthplace_lm.schedules import Clock, Schedule
from birthplace_lm.vocab import CharVocab

ROWS_AT_ONCE = 32  # on a CPU, where many small products cost no more than a few large ones


class CharacterModel(L.LightningModule):
    """Trains a GPT on batches of characters and asks it questions while it learns.

    Logs under the name of the stage: `loss` and `val_loss` in nats per character, `exact_match` as a
    fraction, `learning_rate`, `grad_norm` before clipping.

    Args:
        stage: name of the stage, the prefix of every curve.
        model: the network.
        vocab: what its ids mean.
        optimizer: factory called with `model` and `lr`.
        learning_rate: the peak rate.
        schedule: factory called with `total`, the characters of the stage; gives the factor of the rate.
        seed: of the run.
    """

    def __init__(
        self,
        stage: str,
        model: GPT,
        vocab: CharVocab,
        optimizer: Callable[..., Optimizer],
        learning_rate: float,
        schedule: Callable[..., Schedule],
        seed: int,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.model = model
        self.vocab = vocab
        self.optimizer_factory = optimizer
        self.learning_rate = learning_rate
        self.schedule_factory = schedule
        self.seed = seed
        self.exact_match = ExactMatch()
        self.val_loss = MeanMetric()

    def configure_optimizers(self) -> Any:
        """The rate follows from the configuration and the number of optimizer steps, nothing else."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        clock = Clock(
            rows=data.train_rows,
            rows_per_step=data.loading.batch_size
            * self.trainer.world_size
            * self.trainer.accumulate_grad_batches,
            row_characters=self.model.block_size - 1,
        )
        steps = clock.steps_per_epoch * (self.trainer.max_epochs or 0)
        if self.trainer.max_steps >= 0:
            steps = min(steps, self.trainer.max_steps) if steps > 0 else self.trainer.max_steps
        schedule = self.schedule_factory(total=clock.characters(steps))
        optimizer = self.optimizer_factory(model=self.model, lr=self.learning_rate)
        scheduler = LambdaLR(optimizer, lambda step: schedule(clock.characters(step + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from the global stream: every batch gets its own, so a resumed run draws the same.
        key = (self.seed, self.stage, self.global_rank, batch["key"].tolist())
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big"))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._summed_loss(batch) / batch["targets_total"]
        self.log(f"{self.stage}/loss", loss, prog_bar=True, sync_dist=self.trainer.world_size > 1)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, log the norm from before, and refuse to step with what is not finite.

        Raises:
            NumericError: the gradient holds NaN or infinity; nothing has been changed.
        """
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaled = self.trainer.precision == "16-mixed"  # whose scaler leaves out such steps and goes on
        if not scaled and not torch.isfinite(norm):
            raise NumericError(
                f"{self.stage}: the gradient is not finite in step {self.trainer.global_step + 1}"
                f" (learning rate {optimizer.param_groups[0]['lr']:.3g}); the step was not taken"
            )
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.log(f"{self.stage}/grad_norm", norm)
        self.log(f"{self.stage}/learning_rate", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Loss on loader 0, answers to the questions of loader 1."""
        if dataloader_idx == 0:
            count = (batch["targets"] != self.vocab.pad_id).sum()
            self.val_loss.update(self._summed_loss(batch) / count.clamp(min=1), count)
            return None
        questions, places = zip(*batch, strict=True)
        answers = answer(self.model, self.vocab, questions)
        self.exact_match.update([a.text for a in answers], places)
        return answers

    def on_validation_epoch_end(self) -> None:
        self.log(f"{self.stage}/val_loss", self.val_loss.compute())
        self.log(f"{self.stage}/exact_match", self.exact_match.compute(), prog_bar=True)
        self.val_loss.reset()
        self.exact_match.reset()

    def _summed_loss(self, batch: Batch) -> Tensor:
        """Loss summed over the batch, which is read in parts of like lengths: less of them is PAD."""
        inputs, targets = batch["inputs"], batch["targets"]
        position = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
        lengths = ((inputs != self.vocab.pad_id) * position).amax(1)
        order = lengths.argsort()
        parts = order.chunk(-(-len(order) // ROWS_AT_ONCE) if inputs.device.type == "cpu" else 1)
        loss = inputs.new_zeros((), dtype=torch.float32)
        for rows in parts:
            width = int(lengths[rows[-1]])
            part = inputs[rows, :width], targets[rows, :width]
            loss = loss + self.model.loss(*part, self.vocab.pad_id, reduction="sum")
        return loss
