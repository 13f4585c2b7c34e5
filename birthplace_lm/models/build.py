"""The network of a configuration, and weights for it. Imports no Lightning: who asks a model waits for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from birthplace_lm.errors import CheckpointError
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint


def build_model(config: DictConfig, vocab_size: int) -> GPT:
    """The untrained network of a configuration."""
    return GPT(vocab_size=vocab_size, **instantiate(config.model))


def load_weights(model: GPT, path: Path) -> None:
    """Put the weights of one of our checkpoints into a model.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    load_state_dict_checked(model, model_state_dict(checkpoint.load(path)), path)


def model_state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint, by the names they have in the model."""
    return {key.removeprefix("model."): value for key, value in content["state_dict"].items()}


def load_state_dict_checked(model: GPT, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights that were read from `path` into a model.

    Raises:
        CheckpointError: they are of another model.
    """
    check_state_dict(model, weights, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # of a kind that cannot be copied: sparse, quantized, without values
        raise CheckpointError(f"{path}: its weights are no plain tensors") from error


def check_state_dict(model: GPT, weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights have the names and shapes of a model, which may be on the meta device.

    Raises:
        CheckpointError: with the first that differ.
    """
    if found := checkpoint.state_dict_mismatches(weights, model.state_dict()):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise CheckpointError(
            f"{path}: is of another model: {'; '.join(found[:3])}{more}; give its attention= and model.*"
        )
