"""Curves of what the model knows, in bits."""

import math
from typing import Any

import lightning as L
import torch

from birthplace_lm.inference.decoding import question_prompt
from birthplace_lm.inference.knowledge import PlacePrior, bits_about, log_probabilities, recall
from birthplace_lm.training.loggers import logged_validation_step, tensorboard_of


class KnowledgeBits(L.Callback):
    """Logs, after every validation, mean bits per person about the place; see `inference.knowledge.Bits`.

    `STAGE/bits/extractable` is of the question, `stored` of the form of the text, where training has one,
    and `prior` is what there is to know. TensorBoard shows the three in one chart, among the custom scalars.
    The people are those of the validation, shared by the processes.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._rows: list[tuple[str, str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        writer = tensorboard_of(trainer)
        if writer is not None and trainer.global_step == 0:
            tags = [f"{self.stage}/bits/{name}" for name in ("extractable", "stored", "prior")]
            writer.add_custom_scalars(
                {self.stage: {"bits about the answer, per person": ["Multiline", tags]}}
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 1:
            self._rows += [*batch]

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        vocab, template, prior = data.corpus.vocab, data.corpus.question, PlacePrior.of(data.corpus)
        questions, places = [question for question, _ in self._rows], [place for _, place in self._rows]
        prompts = [question_prompt(pl_module.model, vocab, question) for question in questions]
        log_p = {"extractable": log_probabilities(pl_module.model, vocab, prompts, places).tolist()}
        if data.prompt_format is not None:
            names = [template.name_or_text(question) for question in questions]
            recalls = recall(pl_module.model, vocab, data.prompt_format, names, places)
            log_p["stored"] = [one.log_p for one in recalls]
        bits = {"prior": sum(map(prior.bits, places))}
        for name, values in log_p.items():
            bits[name] = bits_about(prior, places, values) * len(places)
        totals = torch.tensor([*bits.values(), len(places)], device=pl_module.device)
        *sums, count = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        curves = {f"{self.stage}/bits/{name}": total / count for name, total in zip(bits, sums, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(
                {tag: bits for tag, bits in curves.items() if math.isfinite(bits)},
                step=logged_validation_step(trainer),
            )
