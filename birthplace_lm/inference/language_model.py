"""Public API for a trained model: load, answer, attention maps."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from birthplace_lm.config.compose import load_config
from birthplace_lm.data.questions import QuestionTemplate, normalise
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.activations import activations, logit_lens
from birthplace_lm.inference.attention_maps import attention_weights
from birthplace_lm.inference.closed_answers import answer_log_probabilities
from birthplace_lm.inference.decoding import Answer, answer_questions, question_prompt
from birthplace_lm.inference.knowledge import log_probabilities
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.activations import patch_activations
from birthplace_lm.models.build import build_with_weights
from birthplace_lm.models.float32_products import MKL, float32_products
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint as checkpoint_files
from birthplace_lm.runs.auto_precision import faster_library
from birthplace_lm.runs.directory import stage_directory
from birthplace_lm.runs.metrics import METRICS_FILE

WEIGHTS, VOCABULARY = "model.safetensors", "vocab.json"  # of an export, beside its config.json
LAST, BEST = "last", "best"  # which checkpoint of a run
FLOAT32, BFLOAT16 = "float32", "bfloat16"
MOVE = "copy them too, or move the model with birthplace-lm export RUN OUT"


class TrainedModel:
    """A network in evaluation mode with its vocabulary.

    Attributes:
        model: maps (B, T) ids to (B, T, V) logits.
        vocab: maps characters to ids.
        question: the wording that the model was trained to answer.
    """

    def __init__(self, model: GPT, vocab: CharVocab, question: QuestionTemplate) -> None:
        self.model = model.eval()
        self.vocab = vocab
        self.question = question

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        plugins: Collection[str] = (),
        checkpoint: str = LAST,
        stage: str | None = None,
    ) -> "TrainedModel":
        """The model of the last stage of a run directory, or of an export.

        Args:
            path: of the directory.
            plugins: packages whose classes its configuration may name. They are imported.
            checkpoint: "last", or "best" for the best validation of a run with callbacks=best_checkpoint.
            stage: another stage of a run directory; an export has one model.

        A run that only pretrains has a link to a pretraining that runs share. To move it to another machine,
        copy `pretrained/` as well, or move its export.

        Raises:
            InputError: the path is neither, or it has no such checkpoint or stage.
            CheckpointError: the last stage has no checkpoint, or the newest is damaged or of another model.
        """
        run = Path(path)
        config = load_config(run, plugins)
        question = QuestionTemplate.parse(config.data.question)
        *_, last = (name for name, settings in config.stages.items() if settings.enabled)
        exported = (run / WEIGHTS).is_file()
        if checkpoint not in (LAST, BEST) or (exported and checkpoint == BEST):
            valid = f"{LAST}; an export holds one" if exported else f"{LAST}, {BEST}"
            raise InputError(f"checkpoint={checkpoint}: unknown; valid: {valid}")
        if stage is not None and (exported or stage not in config.stages):
            valid = "None; an export holds one model" if exported else ", ".join(config.stages)
            raise InputError(f"stage={stage}: unknown; valid: {valid}")
        file, symbols, weights = (
            _read_export(run) if exported else _read_checkpoint(run, stage or last, checkpoint)
        )
        vocab = CharVocab(symbols)
        return cls(build_with_weights(config.model, len(vocab), weights, file), vocab, question)

    def answer(self, names: Sequence[str]) -> list[str]:
        """The model's answer to its question about each name.

        Raises:
            TypeError: `names` is a string.
        """
        _check_is_list("names", names)
        return [answer.text for answer in self.answer_questions([*map(self.question.about_typed, names)])]

    def answer_questions(self, questions: Sequence[str], precision: str = FLOAT32) -> list[Answer]:
        """Answers to complete questions, with their log-probabilities.

        Args:
            precision: "float32", or "bfloat16" for matrix products in it: faster where the processor has it.

        Raises:
            TypeError: `questions` is a string.
            ValueError: `precision` is another.
        """
        _check_is_list("questions", questions)
        if precision not in (FLOAT32, BFLOAT16):
            raise ValueError(f"precision={precision}: must be {FLOAT32} or {BFLOAT16}")
        texts = [normalise(question) for question in questions]
        device = self.model.tok_emb.weight.device.type
        autocast = torch.autocast(device, torch.bfloat16, enabled=precision == BFLOAT16)
        with float32_products(self._library()), autocast:
            return answer_questions(self.model, self.vocab, texts)

    def log_probabilities(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log P(answer and its closing MASK | question) of one answer for each question, (N), in nats.

        An answer with unknown characters has probability 0, and so has one that does not fit into the block.

        Raises:
            TypeError: `questions` or `answers` is a string.
            ValueError: they are not equally many.
        """
        _check_is_list("questions", questions)
        _check_is_list("answers", answers)
        prompts = [question_prompt(self.model, self.vocab, normalise(question)) for question in questions]
        with float32_products(self._library()):
            return log_probabilities(self.model, self.vocab, prompts, [*map(normalise, answers)])

    def answer_log_probabilities(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log P(answer and its closing MASK | question) of each answer for each question, in nats.

        Equal to `log_probabilities` of all pairs, and much faster for many answers, such as all places.

        Returns:
            (questions, answers). The probabilities of a row sum to at most 1; the rest is other texts.

        Raises:
            TypeError: `questions` or `answers` is a string.
            ValueError: two answers are equal.
        """
        _check_is_list("questions", questions)
        _check_is_list("answers", answers)
        texts = [*map(normalise, answers)]
        if len({*texts}) < len(texts):
            raise ValueError("answers: two are equal")
        prompts = [question_prompt(self.model, self.vocab, normalise(question)) for question in questions]
        with float32_products(self._library()):
            return answer_log_probabilities(self.model, self.vocab, prompts, texts)

    def attention(self, text: str) -> tuple[str, list[Tensor] | None]:
        """The attention weights of every head for a text; see `attention_maps.attention_weights`.

        >>> text, weights = lm.attention("Where was Ada Lovelace born?⁇London⁇")  # weights[0]: (heads, T, T)
        """
        return attention_weights(self.model, self.vocab, normalise(text))

    def activations(self, text: str, names: Sequence[str] | None = None) -> tuple[str, dict[str, Tensor]]:
        """The text as the model reads it, and its activations, (T, channels) each.

        Args:
            names: of those that are wanted; None means all. See `birthplace_lm.models.activations`.

        Raises:
            TypeError: `names` is a string.
            InputError: the text has no character that the model knows, or there is no activation of a name.
        """
        if names is not None:
            _check_is_list("names", names)
        with float32_products(self._library()):
            return activations(self.model, self.vocab, normalise(text), names)

    def patch(self, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> AbstractContextManager[None]:
        """While its block runs, each named activation x is replaced by `changes[name](x)`, (B, T, channels).

        `lm.model(ids)` computes all positions at once. The methods that answer, or score answers, read a
        prompt in parts, so T characters are a part of the text there.

        >>> with lm.patch({"blocks.2.mlp_out": torch.zeros_like}):
        ...     lm.answer(["Ada Lovelace"])  # what is left without this MLP

        Raises:
            InputError: there is no activation of a name.
            ValueError: a change returned no tensor, or one of another shape.
        """
        return patch_activations(self.model, changes)

    def logit_lens(self, text: str) -> tuple[str, Tensor]:
        """The text as the model reads it, and what it would write after each layer.

        Returns:
            Log-probabilities (layers + 1, T, V) of the next character; the first are of the embedding.

        Raises:
            InputError: the text has no character that the model knows, or the model is a `perceiver`.
        """
        with float32_products(self._library()):
            return logit_lens(self.model, self.vocab, normalise(text))

    def _library(self) -> str:
        """The faster library for products of float32 matrices."""
        on_cpu = self.model.tok_emb.weight.device.type == "cpu"
        return faster_library(self.model.tok_emb.embedding_dim) if on_cpu else MKL


def _check_is_list(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{name} is a string; pass a list of {name}")


def _read_checkpoint(run: Path, stage: str, which: str) -> tuple[Path, list[str], dict[str, Tensor]]:
    """The best or the last checkpoint of a stage, or an error: the answers of another would look as good."""
    folder = stage_directory(run, stage)
    if which == BEST:
        path = checkpoint_files.best_path(folder)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no best checkpoint; train with callbacks=best_checkpoint, or take the last"
            )
        content = checkpoint_files.load(path)
        return path, content["birthplace_lm"]["vocab"], model_state_dict(content)
    paths = checkpoint_files.list_checkpoints(folder)
    if not paths and not folder.is_dir() and os.path.lexists(run / stage):
        raise CheckpointError(
            f"{run / stage}: its checkpoints are in {os.path.realpath(folder)}, which is missing; {MOVE}"
        )
    if not paths and (run / METRICS_FILE).is_file():
        raise CheckpointError(f"{run / stage}: the checkpoints of this finished run are missing; {MOVE}")
    if not paths:
        raise CheckpointError(f"{folder}: no checkpoint yet; the command of this run continues it")
    content = checkpoint_files.load(paths[0])
    return paths[0], content["birthplace_lm"]["vocab"], model_state_dict(content)


def _read_export(folder: Path) -> tuple[Path, list[str], dict[str, Tensor]]:
    file = folder / WEIGHTS
    try:
        vocab = CharVocab.from_dict(json.loads((folder / VOCABULARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError, InputError) as error:
        raise CheckpointError(f"{folder}: not a valid export: {VOCABULARY}: {error}") from error
    try:
        return file, list(vocab.symbols), safetensors.torch.load(file.read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a valid export: {error}") from error
