"""The LightningModule around the GPT, the same for every stage and every attention."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from birthplace_lm.data.sequences import Batch
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training.allocator import release_free_memory
from birthplace_lm.training.distributed.fsdp import shard
from birthplace_lm.training.microbatching import microbatched_loss_sum


class LanguageModelModule(L.LightningModule):
    """Trains a GPT on batches of characters and asks it questions in every validation.

    Logs below the name of the stage: `loss` and `val_loss` in nats per character, `exact_match` as a
    fraction. The callbacks do everything else.

    Args:
        stage: name of the stage, the prefix of every curve.
        model: the network.
        vocab: maps characters to ids.
        optimizer: factory, called with `model`.
        lr_factor: factor of the learning rate as a function of the optimizer steps taken before.
        total_steps: optimizer steps of the whole stage.
    """

    def __init__(
        self,
        stage: str,
        model: GPT,
        vocab: CharVocab,
        optimizer: Callable[..., Optimizer],
        lr_factor: Callable[[int], float],
        total_steps: int,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.model = model
        self.vocab = vocab
        self.optimizer_factory = optimizer
        self.lr_factor = lr_factor
        self.total_steps = total_steps
        self.exact_match = MeanMetric()
        self.val_loss = MeanMetric(nan_strategy=math.nan)  # NaN in one batch is NaN in the mean

    def configure_model(self) -> None:
        """Shard the weights if the strategy is FSDP2, the only one that makes a mesh of devices."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(model=self.model)
        scheduler = LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = microbatched_loss_sum(self.model, batch, self.vocab.pad_id) / batch["loss_denominator"]
        # For the callbacks: TrainingCurves writes it before a checkpoint is saved, Lightning would after.
        self.log(f"{self.stage}/loss", loss, logger=False, sync_dist=self.trainer.world_size > 1)
        loss = loss * self._weight_in_step(batch)
        return loss * (1 + 0 * loss.detach())  # one, or NaN: a loss that is not finite shows in the gradient

    def _weight_in_step(self, batch: Batch) -> float:
        """What makes the gradient of every step a mean over its batches.

        Lightning divides by `accumulate_grad_batches` also where the last step of an epoch has fewer.
        """
        batches, usual = int(self.trainer.num_training_batches), self.trainer.accumulate_grad_batches
        last = batches % usual
        return usual / last if last and batch["batch_id"][1] >= batches - last else 1.0

    def on_validation_start(self) -> None:
        release_free_memory()

    def on_validation_end(self) -> None:
        release_free_memory()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Loss on loader 0, answers to the questions of loader 1."""
        if dataloader_idx == 0:
            count = (batch["targets"] != self.vocab.pad_id).sum()
            loss = microbatched_loss_sum(self.model, batch, self.vocab.pad_id) / count.clamp(min=1)
            self.val_loss.update(loss, count)
            self.log(f"{self.stage}/val_loss", self.val_loss, add_dataloader_idx=False)
            return None
        questions, places = zip(*batch, strict=True)
        answers = answer_questions(self.model, self.vocab, questions)
        correct = [a.text == place for a, place in zip(answers, places, strict=True)]
        self.exact_match.update(torch.tensor(correct, dtype=torch.float32))
        self.log(f"{self.stage}/exact_match", self.exact_match, add_dataloader_idx=False, prog_bar=True)
        return answers
