"""A trained model as its users see it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from birthplace_lm import checkpoint
from birthplace_lm.build import build_model, load_weights, weights_for
from birthplace_lm.config import read
from birthplace_lm.data.course import ask, normalise
from birthplace_lm.error import CheckpointError, InputError
from birthplace_lm.generate import Answer, answer
from birthplace_lm.models.gpt import GPT
from birthplace_lm.vocab import CharVocab


class Trained:
    """A network in evaluation mode with its vocabulary.

    Attributes:
        model: maps (B, T) ids to (B, T, V) logits.
        vocab: what the ids mean.
    """

    def __init__(self, model: GPT, vocab: CharVocab) -> None:
        self.model = model.eval()
        self.vocab = vocab

    @classmethod
    def from_run(cls, path: str | Path) -> "Trained":
        """The finetuned model of a run directory.

        Raises:
            InputError: it is no run directory.
            CheckpointError: its last stage has no checkpoint, or the newest is damaged or of another model.
        """
        run = Path(path)
        if not (run / "config.yaml").is_file():
            raise InputError(f"{run}: no run directory: it has no config.yaml")
        config = read(run / "config.yaml")
        stage = "finetune" if config.stages.finetune.enabled else "pretrain"
        found = checkpoint.saved_in(run / stage)
        if not found:
            raise CheckpointError(f"{run / stage}: no checkpoint; run the training first")
        # The newest or none: that an older one is asked would not be seen in the answers.
        vocab = CharVocab(checkpoint.load(found[0])["birthplace_lm"]["vocab"])
        with torch.device("meta"):  # where sizes that are not those of the checkpoint take no memory
            weights_for(build_model(config, len(vocab)), found[0])
        model = build_model(config, len(vocab))
        load_weights(model, found[0])
        return cls(model, vocab)

    def answer(self, names: Sequence[str]) -> list[str]:
        """Where each of these people was born, as far as the model knows."""
        return [a.text for a in self.answer_questions([ask(normalise(name)) for name in names])]

    def answer_questions(self, questions: Sequence[str]) -> list[Answer]:
        """Answers to whole questions, with their log-probabilities."""
        return answer(self.model, self.vocab, questions)
