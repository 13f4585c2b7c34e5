"""Weights of a checkpoint: read them, load them into a model, hash them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from birthplace_lm.models.build import load_state_dict_checked
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint


def load_weights(model: GPT, path: Path) -> None:
    """Load the weights of a checkpoint of this project into a model.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another model.
    """
    load_state_dict_checked(model, model_state_dict(checkpoint.load(path)), path)


def model_state_dict(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a loaded checkpoint, by their names in the model."""
    return {key.removeprefix("model."): value for key, value in content["state_dict"].items()}


def weights_sha256(model: GPT) -> str:
    """A hash of all weights, by which two runs can be compared."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
