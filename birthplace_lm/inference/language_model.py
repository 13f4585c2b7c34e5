"""A trained model as its users see it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from birthplace_lm.config.compose import load_saved
from birthplace_lm.data.questions import normalise, question_about
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.attention_maps import attention_weights
from birthplace_lm.inference.decoding import Answer, answer_questions
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import build_model, check_state_dict, load_state_dict_checked
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.directory import stage_directory

WEIGHTS, VOCABULARY = "model.safetensors", "vocab.json"  # of an exported model, beside its config.yaml


class TrainedModel:
    """A network in evaluation mode with its vocabulary.

    Attributes:
        model: maps (B, T) ids to (B, T, V) logits.
        vocab: what the ids mean.
    """

    def __init__(self, model: GPT, vocab: CharVocab) -> None:
        self.model = model.eval()
        self.vocab = vocab

    @classmethod
    def from_run(cls, path: str | Path) -> "TrainedModel":
        """The finetuned model of a run directory, or of what was exported from one.

        Raises:
            InputError: it is neither.
            CheckpointError: its last stage has no checkpoint, or the newest is damaged or of another model.
        """
        run = Path(path)
        if not (run / "config.yaml").is_file():
            raise InputError(f"{run}: no run directory: it has no config.yaml")
        config = load_saved(run / "config.yaml")
        stage = "finetune" if config.stages.finetune.enabled else "pretrain"
        exported = (run / WEIGHTS).is_file()
        file, symbols, weights = _exported(run) if exported else _newest(run, stage)
        vocab = CharVocab(symbols)
        with torch.device("meta"):  # where sizes that are not those of the weights take no memory
            check_state_dict(build_model(config.model, len(vocab)), weights, file)
        model = build_model(config.model, len(vocab))
        load_state_dict_checked(model, weights, file)
        return cls(model, vocab)

    def answer(self, names: Sequence[str]) -> list[str]:
        """Where each of these people was born, as far as the model knows."""
        if isinstance(names, str):
            raise TypeError("names is one text; give a list of names")
        return [answer.text for answer in self.answer_questions([*map(question_about, names)])]

    def answer_questions(self, questions: Sequence[str]) -> list[Answer]:
        """Answers to whole questions, with their log-probabilities."""
        texts = [self.vocab.replace_unknown(normalise(question)) for question in questions]
        return answer_questions(self.model, self.vocab, texts)

    def attention(self, text: str) -> tuple[str, Tensor | None]:
        """What every head looks at in a text; see `attention_maps.attention_weights`.

        >>> text, weights = lm.attention("Where was Ada Lovelace born?⁇London⁇")  # (layers, heads, T, T)
        """
        return attention_weights(self.model, self.vocab, text)


def _newest(run: Path, stage: str) -> tuple[Path, list[str], dict[str, Tensor]]:
    """The newest checkpoint of a stage or an error: the answers of an older one would look just as good."""
    folder = stage_directory(run, stage)
    paths = checkpoint.list_checkpoints(folder)
    if not paths and not folder.is_dir() and os.path.lexists(run / stage):
        raise CheckpointError(
            f"{run / stage}: its checkpoints are in {os.path.realpath(folder)}, which is missing;"
            " copy that folder too, or move the model with birthplace-lm export"
        )
    if not paths:
        raise CheckpointError(f"{folder}: no checkpoint; run the training first")
    content = checkpoint.load(paths[0])
    return paths[0], content["birthplace_lm"]["vocab"], model_state_dict(content)


def _exported(folder: Path) -> tuple[Path, list[str], dict[str, Tensor]]:
    file = folder / WEIGHTS
    try:
        vocab = CharVocab.from_dict(json.loads((folder / VOCABULARY).read_text(encoding="utf-8")))
        return file, list(vocab.symbols), safetensors.torch.load(file.read_bytes())
    except (OSError, ValueError, AttributeError, SafetensorError, InputError) as error:
        raise CheckpointError(f"{folder}: not what was exported: {error}") from error
