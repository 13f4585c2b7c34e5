"""Sample answers and attention maps in TensorBoard."""

import re
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from birthplace_lm.data.vocab import MASK
from birthplace_lm.inference.attention_maps import attention_picture, attention_weights


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
        logger = trainer.logger
        if isinstance(logger, TensorBoardLogger) and self._rows and not trainer.sanity_checking:
            head = "| question | answer | gold | right | log-probability (nats) |\n|" + " --- |" * 5 + "\n"
            logger.experiment.add_text(
                f"{self.stage}/answers", head + "\n".join(self._rows), trainer.global_step - 1
            )


class AttentionMaps(L.Callback):
    """Shows the attention weights of every head for the first questions and the model's own answers."""

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
            pairs = zip(batch[: self.count], outputs[: self.count], strict=True)
            self._texts = [f"{question}{MASK}{answer.text}{MASK}" for (question, _), answer in pairs]

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
    """Escape a cell of a Markdown table; line breaks become spaces."""
    return re.sub(r"[^\w\s.,?'-]|_", lambda match: f"&#{ord(match[0])};", re.sub(r"\s", " ", text))
