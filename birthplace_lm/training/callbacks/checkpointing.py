"""Checkpoints: the callback that saves them and stops the run on a signal, and Lightning's CheckpointIO."""

import logging
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from birthplace_lm.data.corpora.corpus import check_data_hashes
from birthplace_lm.errors import CheckpointError, Interrupted, NonFiniteError
from birthplace_lm.models.float32_products import MKL, current_library, multiply_with
from birthplace_lm.runs import checkpoint as checkpoint_files
from birthplace_lm.runs import signals
from birthplace_lm.training.callbacks.ema import EMA
from birthplace_lm.training.distributed.dtensor import full_tensor
from birthplace_lm.training.loggers import tensorboard_of

log = logging.getLogger(__name__)


class CheckpointCallback(L.Callback):
    """Saves after optimizer steps and at the end of the stage, keeps the newest files, and stops on a signal.

    Before the end of the stage nothing is saved between accumulated batches, because a checkpoint holds no
    gradients. A step that is followed by a validation is saved after the validation: a run that is resumed
    between the two would lack the validation in its curves. It comes last among the callbacks, so that their
    decisions to stop are known.

    Args:
        directory: of the stage.
        every_n_steps, keep_last: see the configuration.
        metadata: saved in every checkpoint as `birthplace_lm`.
        resumed: the checkpoint that this run continues from, which is not removed.
    """

    def __init__(
        self,
        directory: Path,
        every_n_steps: int,
        keep_last: int,
        metadata: Mapping[str, Any],
        resumed: Path | None,
    ) -> None:
        self.directory = directory
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.metadata = metadata
        self.resumed = resumed
        self._step = self._saved_step = -1
        self._due, self._signal = False, 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["birthplace_lm"] = {**self.metadata, "environment": _environment(trainer)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        check_data_hashes(checkpoint["birthplace_lm"]["data"], self.metadata["data"])
        if checkpoint["birthplace_lm"].get("config_sha256") != self.metadata["config_sha256"]:
            raise CheckpointError(
                f"{self.directory}: its checkpoint belongs to another configuration; take another run_dir"
            )
        old = {"float32_products": MKL, **checkpoint["birthplace_lm"].get("environment", {})}
        if trainer.strategy.root_device.type == "cpu":
            multiply_with(old["float32_products"])  # a stage keeps what it began with, to the last bit
        new = _environment(trainer)
        changes = [f"{key} was {old.get(key)} and is {new[key]}" for key in new if old.get(key) != new[key]]
        if changes and trainer.is_global_zero:
            other_masks = pl_module.model.drop.p > 0 and old.get("processes") != new["processes"]
            what = "the last bits and the masks of dropout" if other_masks else "the last bits"
            log.warning("resumed elsewhere, %s may differ: %s", what, "; ".join(changes))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            log.info("%s: %s", self.metadata["stage"], _describe(_environment(trainer)))
        self._step = trainer.global_step
        if self.resumed is not None and self.resumed == checkpoint_files.checkpoint_path(
            self.directory, self._step
        ):
            self._saved_step = self._step
        _agree(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number, step = _agree(trainer), trainer.global_step
        if step == self._step:
            return
        self._step, self._signal = step, number
        self._due = self._due or step % self.every_n_steps == 0 or self._signal > 0
        if not (trainer.is_last_batch or _validates_after(trainer, batch_idx)):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _agree(trainer)
        if not (trainer.sanity_checking or trainer.is_last_batch):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _agree(trainer)
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if any(isinstance(callback, EMA) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            self._saved_step = -1  # what was saved at this step lacks the average, which ends the stage
        self._save(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if not self._due or trainer.should_stop:  # then on_train_end saves
            return
        self._save(trainer)
        if self._signal:
            raise Interrupted(self._signal, f"after step {self._step} of {self.metadata['stage']}")

    def _save(self, trainer: L.Trainer) -> None:
        self._due = False
        if self._saved_step == trainer.global_step:
            return
        _check_finite(trainer)
        if (writer := tensorboard_of(trainer)) is not None:
            writer.flush()  # a resumed run rewrites only later points
        trainer.save_checkpoint(checkpoint_files.checkpoint_path(self.directory, trainer.global_step))
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for old in checkpoint_files.list_checkpoints(self.directory)[self.keep_last :]:
                if old != self.resumed:
                    trainer.strategy.checkpoint_io.remove_checkpoint(old)


def _validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch of an epoch."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    batches = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    return (batches + 1) % (trainer.val_check_batch or 1) == 0


def _agree(trainer: L.Trainer) -> int:
    """Let all processes stop if a callback has decided so in any of them.

    Returns:
        The signal that any of them has received; 0 if none has.
    """
    number = signals.pending_signal() or 0
    if trainer.world_size > 1:
        own = torch.tensor([number, int(trainer.should_stop)], device=trainer.strategy.root_device)
        number, should_stop = trainer.strategy.reduce(own, reduce_op="max").tolist()
        trainer.should_stop = bool(should_stop)
    return number


def _check_finite(trainer: L.Trainer) -> None:
    for name, weight in trainer.lightning_module.named_parameters():
        if not torch.isfinite(full_tensor(weight)).all():
            raise NonFiniteError(
                f"{name} is not finite after step {trainer.global_step}; no checkpoint was saved"
            )


def _environment(trainer: L.Trainer) -> dict[str, Any]:
    """Versions and devices, which the last bits of the result depend on."""
    return {
        "birthplace_lm": next((d.version for d in distributions(name="birthplace-lm")), "not installed"),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "device": trainer.strategy.root_device.type,
        "threads": torch.get_num_threads(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "float32_products": current_library(),
    }


def _describe(environment: Mapping[str, Any]) -> str:
    """Where a stage trains, for the log."""
    processes, threads = environment["processes"], environment["threads"]
    parts = [
        f"{processes} process{'es' * (processes > 1)} on {environment['device']}",
        environment["precision"],
    ]
    if environment["device"] == "cpu":
        parts += [f"{threads} thread{'s' * (threads > 1)}", f"products by {environment['float32_products']}"]
    return ", ".join(parts)


class VerifiedCheckpointIO(CheckpointIO):
    """Reads and writes checkpoints with their hashes; see `runs.checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        checkpoint_files.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load verified plain data; nothing else is unpickled."""
        return checkpoint_files.load(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        checkpoint_files.remove(Path(path))
