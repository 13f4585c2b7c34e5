"""Weights of a checkpoint: take them out, hash them."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from birthplace_lm.models.gpt import GPT


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
