"""Import a model that a student of the course has saved."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.qa_files import read_documents
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_with_weights

CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")  # hold the weights in a larger checkpoint
DEFAULT_HEADS = 8  # of the course
# Modules that DataParallel, torch.compile, Lightning, FSDP and activation checkpointing wrap around others.
WRAPPERS = {"module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def read_course_model(
    file: Path, attention: str, corpus: Path, n_head: int | None = None
) -> tuple[TrainedModel, DictConfig]:
    """Read what `torch.save(model.state_dict(), FILE)` wrote in the assignment of 2021.

    A checkpoint that holds the state_dict among other things, and weights of a wrapped model
    (`module.`, `_orig_mod.`), are read, too. The weights tell all sizes but the number of heads, which
    those of the synthesizer tell too. Nothing in the file is executed.

    Args:
        attention: vanilla, synthesizer or another variant with the same parameter names.
        corpus: the course's wiki.txt, whose characters are the vocabulary.
        n_head: number of heads; None for that of the weights, or 8 where they do not tell it.

    Raises:
        CheckpointError: the file is damaged, holds more than weights, or belongs to another attention.
        InputError: the corpus has another number of characters, the weights another number of heads, or a
            size is out of range.
    """
    weights = _weights(file)
    vocab = CharVocab.from_text(read_documents(corpus, "--corpus").text)
    try:
        symbols, n_embd = weights["tok_emb.weight"].shape
        block_size = weights["pos_emb"].shape[1]
    except (KeyError, IndexError, ValueError):
        raise CheckpointError(
            f"{file}: not a model of the course: it has no tok_emb.weight or pos_emb"
        ) from None
    if symbols != len(vocab):
        raise InputError(
            f"--corpus {corpus}: has {len(vocab)} symbols, and {file} was trained with {symbols}"
        )
    w2 = weights.get("blocks.0.attn.w2")  # of the synthesizer: a row for each channel of a head
    own_heads = int(n_embd) // len(w2) if w2 is not None and w2.dim() == 2 and len(w2) else None
    if None not in (n_head, own_heads) and n_head != own_heads:
        raise InputError(f"--n-head {n_head}: the weights of {file} have {own_heads}; leave it out")
    n_head = n_head or own_heads or DEFAULT_HEADS
    layers = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    config = compose(
        [
            "pretrain=none", "data=cs224n", f"attention={attention}", f"model.n_head={n_head}",
            f"model.n_layer={max(layers, default=-1) + 1}", f"model.n_embd={n_embd}",
            f"model.block_size={block_size}", "data.root=.",
        ]
    )  # fmt: skip
    try:
        model = build_with_weights(config.model, len(vocab), weights, file)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give its --attention") from error
    return TrainedModel(model, vocab, QuestionTemplate.parse(config.data.question)), config


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    except Exception as error:  # zip, pickle and torch each raise their own kinds
        raise CheckpointError(
            f"{file}: cannot be read as weights: {type(error).__name__}; save model.state_dict() alone"
        ) from error
    if isinstance(content, Mapping):
        nested = (content[key] for key in CHECKPOINT_KEYS if isinstance(content.get(key), Mapping))
        content = next(nested, content)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file}: no state_dict: it must map names to tensors")
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in content}
    if len({*names.values()}) < len(names):
        raise CheckpointError(f"{file}: holds the weights of several models; save one model.state_dict()")
    return {names[name]: value for name, value in content.items() if not names[name].endswith(".attn.mask")}
