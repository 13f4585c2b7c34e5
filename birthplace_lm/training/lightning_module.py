"""The LightningModule around the GPT, the same for every stage and attention."""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from birthplace_lm.data.sequences import Batch
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import NonFiniteError
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs.atomic_files import atomic_write_text
from birthplace_lm.training.distributed.dtensor import full_tensor
from birthplace_lm.training.distributed.fsdp import reshard, shard, unshard, unsharded
from birthplace_lm.training.lr_schedules import Schedule, TrainingClock
from birthplace_lm.training.metrics import ExactMatch
from birthplace_lm.training.microbatching import microbatched_loss_sum

log = logging.getLogger(__name__)

MAX_SCALER_SKIPS = 50  # steps that the scaler of float16 may leave out; each halves the scale


class LanguageModelModule(L.LightningModule):
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
        max_steps: optimizer steps to end after; -1 for no other end than that of the epochs.
        seed: of the run.
        max_nonfinite_steps: steps of this stage that may be left out because their gradient is not finite.
        folder: where to report them.
    """

    def __init__(
        self,
        stage: str,
        model: GPT,
        vocab: CharVocab,
        optimizer: Callable[..., Optimizer],
        learning_rate: float,
        schedule: Callable[..., Schedule],
        max_steps: int,
        seed: int,
        max_nonfinite_steps: int,
        folder: Path,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.model = model
        self.vocab = vocab
        self.optimizer_factory = optimizer
        self.learning_rate = learning_rate
        self.schedule_factory = schedule
        self.max_steps = max_steps
        self.total_steps = 0  # of the stage; known when the optimizers are
        self.seed = seed
        self.max_nonfinite_steps = max_nonfinite_steps
        self.folder = folder
        self.skipped = 0
        self._scaled = 0  # steps in a row that a scaler has left out
        self._window: list[Batch] = []  # the batches of this optimizer step
        self.exact_match = ExactMatch()
        self.val_loss = MeanMetric()

    def configure_model(self) -> None:
        """With FSDP2, which alone makes a mesh of devices, the weights are spread over it."""
        if self._device_mesh is not None:
            shard(self.model, self._device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """The rate follows from the configuration and the number of optimizer steps, nothing else."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        clock = TrainingClock(
            rows=data.train_rows,
            rows_per_step=data.loading.batch_size
            * self.trainer.world_size
            * self.trainer.accumulate_grad_batches,
            row_characters=self.model.block_size - 1,
        )
        assert self.trainer.max_epochs is not None  # the pipeline always gives it
        self.total_steps = clock.steps_of(self.trainer.max_epochs, self.max_steps)
        schedule = self.schedule_factory(total_positions=clock.positions_seen(self.total_steps))
        optimizer = self.optimizer_factory(model=self.model, lr=self.learning_rate)
        scheduler = LambdaLR(optimizer, lambda step: schedule(clock.positions_seen(step + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from the global stream: every batch gets its own, so a resumed run draws the same.
        key = (self.seed, self.stage, self.global_rank, batch["batch_id"].tolist())
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = checkpoint["skipped"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._window.append(batch)
        loss = microbatched_loss_sum(self.model, batch, self.vocab.pad_id) / batch["loss_denominator"]
        self._log("loss", loss, sync_dist=self.trainer.world_size > 1)
        return loss * (1 + 0 * loss.detach())  # one, or NaN: what is not finite shows in the gradient

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, log the norm from before, and leave the step out if the gradient holds NaN or infinity.

        Raises:
            NumericError: too many such steps; nothing has been changed.
        """
        window, self._window = self._window, []
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        self._log("grad_norm", norm)
        rate = optimizer.param_groups[-1]["lr"]  # of Muon's two that of the configuration, times the schedule
        self._log("learning_rate", rate)
        if not torch.isfinite(norm):
            self._skip_step(window, float(norm), rate)
            return
        self._scaled = 0
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _skip_step(self, window: list[Batch], norm: float, rate: float) -> None:
        self._scaled += 1
        if self.trainer.precision == "16-mixed" and self._scaled <= MAX_SCALER_SKIPS:
            return  # its scaler leaves out such steps by itself, and tries again with smaller numbers
        step = self.trainer.global_step + 1
        file = self.folder / f"nonfinite-step-{step:08d}-rank-{self.global_rank}.json"
        with unsharded(self.model):
            report = self._report(window, step, norm, rate)
        atomic_write_text(file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        said = (
            f"{self.stage}: the gradient is not finite in step {step} (learning rate {rate:.3g}, norm {norm})"
        )
        if self.skipped == self.max_nonfinite_steps:
            raise NonFiniteError(f"{said}; the step was not taken, its examples are in {file}")
        self.skipped += 1
        log.warning("%s; skipped, %d more may be; %s", said, self.max_nonfinite_steps - self.skipped, file)
        for parameter in self.parameters():
            parameter.grad = None  # the optimizers leave alone what has no gradient

    @torch.no_grad()
    def _report(self, window: list[Batch], step: int, norm: float, rate: float) -> dict[str, Any]:
        """What a step that was left out was made of; every example with its own loss, in nats."""
        examples = []
        for batch in window:
            epoch, index = batch["batch_id"].tolist()
            for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
                loss = float(self.model.loss(inputs[None], targets[None], self.vocab.pad_id, reduction="sum"))
                text = self.vocab.decode(inputs.tolist()).rstrip(self.vocab.pad)
                examples.append({"epoch": epoch, "batch": index, "loss": _readable(loss), "text": text})
        named = list(self.model.named_parameters())
        return {
            "stage": self.stage,
            "step": step,
            "learning_rate": rate,
            "gradient_norm": _readable(norm),
            "weights_not_finite": [name for name, p in named if not torch.isfinite(full_tensor(p)).all()],
            "gradients_not_finite": [
                name
                for name, p in named
                if p.grad is not None and not torch.isfinite(full_tensor(p.grad)).all()
            ],
            "examples": examples,
        }

    def _log(self, name: str, value: Any, **options: Any) -> None:
        """Log for callbacks: `TrainingCurves` writes before each checkpoint, Lightning would after it."""
        self.log(f"{self.stage}/{name}", value, logger=False, **options)

    def on_validation_start(self) -> None:
        unshard(self.model)  # the answers of one process are longer than those of another

    def on_validation_end(self) -> None:
        reshard(self.model)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Loss on loader 0, answers to the questions of loader 1."""
        if dataloader_idx == 0:
            count = (batch["targets"] != self.vocab.pad_id).sum()
            self.val_loss.update(
                microbatched_loss_sum(self.model, batch, self.vocab.pad_id) / count.clamp(min=1), count
            )
            return None
        questions, places = zip(*batch, strict=True)
        answers = answer_questions(self.model, self.vocab, questions)
        self.exact_match.update([a.text for a in answers], places)
        return answers

    def on_validation_epoch_end(self) -> None:
        self.log(f"{self.stage}/val_loss", self.val_loss.compute())
        self.log(f"{self.stage}/exact_match", self.exact_match.compute(), prog_bar=True)
        self.val_loss.reset()
        self.exact_match.reset()


def _readable(number: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else str(number)
