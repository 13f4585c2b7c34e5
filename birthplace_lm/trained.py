"""A trained model as its users see it."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from birthplace_lm import checkpoint
from birthplace_lm.config import checked
from birthplace_lm.data.course import ask, normalise
from birthplace_lm.error import CheckpointError, InputError
from birthplace_lm.generate import Answer, answer
from birthplace_lm.models.gpt import GPT
from birthplace_lm.pipeline import build_model, load_weights
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
            CheckpointError: no whole checkpoint of its last stage is in it.
        """
        run = Path(path)
        if not (run / "config.yaml").is_file():
            raise InputError(f"{run}: no run directory: it has no config.yaml")
        try:
            config = checked(OmegaConf.load(run / "config.yaml"))  # type: ignore[arg-type]
        except (InputError, OmegaConfBaseException) as error:
            raise InputError(f"{run / 'config.yaml'}: {str(error).splitlines()[0]}") from error
        stage = "finetune" if config.stages.finetune.enabled else "pretrain"
        newest = checkpoint.newest_in(run / stage)
        if newest is None:
            raise CheckpointError(f"{run / stage}: no checkpoint; run the training first")
        vocab = CharVocab(checkpoint.load(newest)["birthplace_lm"]["vocab"])
        model = build_model(config, len(vocab))
        load_weights(model, newest)
        return cls(model, vocab)

    def answer(self, names: Sequence[str]) -> list[str]:
        """Where each of these people was born, as far as the model knows."""
        return [a.text for a in self.answer_questions([ask(normalise(name)) for name in names])]

    def answer_questions(self, questions: Sequence[str]) -> list[Answer]:
        """Answers to whole questions, with their log-probabilities."""
        return answer(self.model, self.vocab, questions)
