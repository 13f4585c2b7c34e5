"""Sample answers, attention maps and notes in TensorBoard."""

import re
from typing import Any

import lightning as L

from birthplace_lm.inference.attention_maps import answered_text, attention_weights
from birthplace_lm.inference.attention_pictures import attention_pictures
from birthplace_lm.training.loggers import logged_validation_step, tensorboard_of


class SampleAnswers(L.Callback):
    """Writes a table of the first questions after every validation: the model's answers, the gold places."""

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
        writer = tensorboard_of(trainer)
        if writer is not None and self._rows and not trainer.sanity_checking:
            head = "| question | answer | gold | right | log-probability (nats) |\n|" + " --- |" * 5 + "\n"
            writer.add_text(
                f"{self.stage}/answers", head + "\n".join(self._rows), logged_validation_step(trainer)
            )


class AttentionMaps(L.Callback):
    """Shows the attention weights of every layer for the first question and the model's own answer."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._text = ""

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
            (question, _), *_ = batch
            self._text = answered_text(pl_module.model, pl_module.vocab, question, outputs[0].text)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        writer = tensorboard_of(trainer)
        if writer is None or trainer.sanity_checking or not self._text:
            return
        read, weights = attention_weights(pl_module.model, pl_module.vocab, self._text)
        if weights is None:
            return
        # TensorBoard shrinks a picture to about 350 pixels: two maps side by side have no legible letters.
        pictures = attention_pictures(pl_module.model, read, weights, columns=1)
        for layer, picture in enumerate(pictures, start=1):
            tag = f"{self.stage}/attention/layer_{layer}"
            writer.add_image(tag, picture, logged_validation_step(trainer), dataformats="HWC")


class CurveNotes(L.Callback):
    """Writes what the validation loss of a stage measures, as its data module explains it."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        note = trainer.datamodule.held_out_note  # type: ignore[attr-defined]
        writer = tensorboard_of(trainer)
        if writer is not None and note and trainer.global_step == 0:
            writer.add_text(f"{self.stage}/about_val_loss", note, 0)


def _cell(text: str) -> str:
    """Escape a cell of a Markdown table; line breaks become spaces."""
    return re.sub(r"[^\w\s.,?'-]|_", lambda match: f"&#{ord(match[0])};", re.sub(r"\s", " ", text))
