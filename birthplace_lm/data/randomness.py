"""Reproducible random numbers: generators seeded by a key, and integers drawn from them."""

import hashlib

import torch
from torch import Tensor


def generator_for(*key: int | str) -> torch.Generator:
    """A generator whose stream depends on the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def randint_below(limit: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform integers from 0 to limit - 1, elementwise."""
    draw = torch.rand(limit.shape, generator=generator, dtype=torch.float64)
    return (draw * limit).long().clamp(max=limit - 1)
