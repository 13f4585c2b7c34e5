"""Build a network, and check and load weights for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from birthplace_lm.errors import CheckpointError
from birthplace_lm.models.gpt import GPT


def build_model(sizes: Mapping[str, Any], vocab_size: int) -> GPT:
    """An untrained network.

    Args:
        sizes: the other arguments of `GPT`; `attention` may be a mapping with a `_target_`, as in yaml.
        vocab_size: number of symbols.
    """
    return GPT(vocab_size=vocab_size, **instantiate(sizes))


def build_with_weights(
    sizes: Mapping[str, Any], vocab_size: int, weights: Mapping[str, Tensor], path: Path
) -> GPT:
    """A network with weights that were read from `path`; sizes that do not fit them take no memory.

    Raises:
        CheckpointError: they belong to another model.
    """
    with torch.device("meta"):
        check_state_dict(build_model(sizes, vocab_size), weights, path)
    model = build_model(sizes, vocab_size)
    load_state_dict_checked(model, weights, path)
    return model


def load_state_dict_checked(model: GPT, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights that were read from `path` into a model.

    Raises:
        CheckpointError: they belong to another model.
    """
    check_state_dict(model, weights, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # tensors that cannot be copied: sparse, quantized, without values
        raise CheckpointError(f"{path}: its weights are not plain tensors") from error


def check_state_dict(model: GPT, weights: Mapping[str, Tensor], path: Path, hint: str = "") -> None:
    """Check that weights have the names and shapes of a model, which may be on the meta device.

    Args:
        hint: what to do about it, for the message.

    Raises:
        CheckpointError: with the first mismatches.
    """
    if mismatches := state_dict_mismatches(weights, model.state_dict()):
        more = f" and {len(mismatches) - 3} more" if len(mismatches) > 3 else ""
        raise CheckpointError(f"{path}: belongs to another model: {'; '.join(mismatches[:3])}{more}{hint}")


def state_dict_mismatches(saved: Mapping[str, Tensor], built: Mapping[str, Tensor]) -> list[str]:
    """The names and shapes in which the weights of a checkpoint differ from those of a model."""
    mismatches = []
    for key in sorted({*saved, *built}):
        there = tuple(saved[key].shape) if key in saved else "missing"
        here = tuple(built[key].shape) if key in built else "missing"
        if there != here:
            mismatches.append(f"{key} is {there} there and {here} here")
    return mismatches
