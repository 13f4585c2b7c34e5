"""What happens around training: saving, stopping, sample answers."""

import logging
import re
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from birthplace_lm.data.corpora.corpus import check_data_hashes
from birthplace_lm.data.vocab import MASK
from birthplace_lm.errors import Interrupted, NonFiniteError
from birthplace_lm.inference.attention_maps import attention_picture
from birthplace_lm.inference.decoding import attention_weights
from birthplace_lm.runs import checkpoint, signals
from birthplace_lm.training.distributed.dtensor import full_tensor

log = logging.getLogger(__name__)


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


class CheckpointCallback(L.Callback):
    """Saves after optimizer steps and when the stage ends, keeps the newest few, and heeds signals.

    Within a window of accumulated batches nothing is saved: the gradients so far are not in a checkpoint. A
    step that is followed by a validation is saved after it, so that no run is resumed between the two: the
    validation would be missing from the curves.

    Args:
        directory: of the stage.
        every_n_steps, keep_last: see the configuration.
        content: what goes into every checkpoint as `birthplace_lm`.
        resumed: the checkpoint that this run goes on from, which stays.
    """

    def __init__(
        self,
        directory: Path,
        every_n_steps: int,
        keep_last: int,
        content: Mapping[str, Any],
        resumed: Path | None,
    ) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.content = content
        self.resumed = resumed
        self._step = self._saved_step = -1
        self._due, self._signal = False, 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["birthplace_lm"] = {**self.content, "environment": _environment(trainer)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        check_data_hashes(checkpoint["birthplace_lm"]["data"], self.content["data"])
        before, now = checkpoint["birthplace_lm"].get("environment", {}), _environment(trainer)
        changed = [
            f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]
        ]
        if changed and trainer.is_global_zero:
            log.warning("resumed elsewhere, the last bits may differ: %s", "; ".join(changed))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if self.resumed is not None and self.resumed == checkpoint.checkpoint_path(
            self.directory, self._step
        ):
            self._saved_step = self._step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        self._signal = _agreed_signal(trainer)
        self._due = self._due or step % self.every_n_steps == 0 or self._signal > 0
        validated = (batch_idx + 1) % (trainer.val_check_batch or 1) == 0
        if not (trainer.is_last_batch or validated):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.sanity_checking or trainer.is_last_batch):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if not self._due or trainer.should_stop:  # then on_train_end does
            return
        self._save(trainer)
        if self._signal:
            raise Interrupted(self._signal, f"after step {self._step} of {self.content['stage']}")

    def _save(self, trainer: L.Trainer) -> None:
        self._due = False
        if self._saved_step == trainer.global_step:
            return
        _check_finite(trainer)
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            trainer.logger.experiment.flush()  # what is after the checkpoint is written again, before it not
        trainer.save_checkpoint(checkpoint.checkpoint_path(self.directory, trainer.global_step))
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for old in checkpoint.list_checkpoints(self.directory)[self.keep_last :]:
                if old != self.resumed:
                    trainer.strategy.checkpoint_io.remove_checkpoint(old)


def _agreed_signal(trainer: L.Trainer) -> int:
    """The signal that any of the processes has received, the same in all of them; 0 if none has."""
    number = signals.pending_signal() or 0
    if trainer.world_size == 1:
        return number
    found = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(found, reduce_op="max"))


def _check_finite(trainer: L.Trainer) -> None:
    for name, weight in trainer.lightning_module.named_parameters():
        if not torch.isfinite(full_tensor(weight)).all():
            raise NonFiniteError(
                f"{name} is not finite after step {trainer.global_step}; no checkpoint was saved"
            )


def _environment(trainer: L.Trainer) -> dict[str, Any]:
    """What else the last bits depend on."""
    return {
        "birthplace_lm": next((d.version for d in distributions(name="birthplace-lm")), "not installed"),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "device": trainer.strategy.root_device.type,
        "threads": torch.get_num_threads(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


class SampleAnswers(L.Callback):
    """A table of the same questions after every validation: what the model says, and what is true."""

    def __init__(self, stage: str, count: int = 10) -> None:
        self.stage = stage
        self.count = count
        self._rows: list[str] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 1 and batch_idx == 0:
            self._rows = [
                f"| {_cell(question)} | {_cell(answer.text)} | {_cell(place)}"
                f" | {'yes' if answer.text == place else ''} | {answer.log_probability:.2f} |"
                for (question, place), answer in zip(batch[: self.count], outputs[: self.count], strict=True)
            ]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = trainer.logger
        if isinstance(logger, TensorBoardLogger) and self._rows and not trainer.sanity_checking:
            head = "| question | answer | gold | right | log-probability (nats) |\n|" + " --- |" * 5 + "\n"
            logger.experiment.add_text(
                f"{self.stage}/answers", head + "\n".join(self._rows), trainer.global_step - 1
            )


class AttentionMaps(L.Callback):
    """What every head looks at while the model reads the first questions and its own answers to them."""

    def __init__(self, stage: str, count: int = 2) -> None:
        self.stage = stage
        self.count = count
        self._texts: list[str] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 1 and batch_idx == 0:
            asked = zip(batch[: self.count], outputs[: self.count], strict=True)
            self._texts = [f"{question}{MASK}{answer.text}{MASK}" for (question, _), answer in asked]

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.sanity_checking:
            return
        for number, text in enumerate(self._texts, start=1):
            read, weights = attention_weights(pl_module.model, pl_module.vocab, text)
            if weights is not None:
                picture = attention_picture(weights, read.replace(MASK, "|"))
                tag = f"{self.stage}/attention/{number}"
                trainer.logger.experiment.add_image(tag, picture, trainer.global_step - 1, dataformats="HWC")


def _cell(text: str) -> str:
    """A cell of a Markdown table that shows these very characters; breaks of the line become spaces."""
    return re.sub(r"[^\w\s.,?'-]|_", lambda found: f"&#{ord(found[0])};", re.sub(r"\s", " ", text))
