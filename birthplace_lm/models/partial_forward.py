"""Forward passes of a GPT that compute no more than their caller uses.

They call the same modules as `GPT.forward`, so any attention variant works with them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.kv_cache import KVCache


def logits_at(model: GPT, ids: Tensor, select: Tensor, cache: KVCache | None = None) -> Tensor:
    """`model(ids, cache)[select]`, (N, V), without the last MLP and the head for the other positions.

    Args:
        select: (B, T) of bool, the N positions whose logits are needed.
    """
    layers = [None] * model.n_layer if cache is None else cache.layers
    x = embedding = model.embed(ids, cache)
    for index, block in enumerate(model.blocks):
        is_last = index == model.n_layer - 1
        x = block(x, layers[index], embedding, select if is_last else None)
    logits: Tensor = model.head(model.ln_f(x))
    return logits


def forward_with_shared_prefix(
    model: GPT, ids: Tensor, prefix_length: int, select: Tensor, cache: KVCache
) -> Tensor:
    """`logits_at(model, ids, select)`, which computes a prefix that all rows share only once.

    Args:
        prefix_length: the first `prefix_length` characters are equal in all rows; less than T.
        select: (B, T) of bool, false within the prefix.
        cache: an empty one, which afterwards holds all of `ids`.
    """
    if prefix_length:
        cache.advance(prefix_length, ids.device)
        logits_at(model, ids[:1, :prefix_length], select[:1, :prefix_length], cache)
        cache.expand_batch(len(ids))
    cache.advance(ids.shape[1] - prefix_length, ids.device)
    return logits_at(model, ids[:, prefix_length:], select[:, prefix_length:], cache)


def read_prompts(
    model: GPT, prompts: Sequence[Sequence[int]], pad_id: int, size: int
) -> tuple[Tensor, Tensor, KVCache]:
    """Read prompts of different lengths into a cache; a prefix that all of them share is computed once.

    Prompts are padded on the right: what the cache holds for PAD must be overwritten, by
    `KVCache.set_positions`, before anything attends to it.

    Args:
        prompts: ids; none is empty.
        size: the most positions that a row of the cache will have.

    Returns:
        Logits (B, V) of the character after each prompt, the lengths of the prompts (B), and the cache.
    """
    device = model.tok_emb.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    shortest, width = int(lengths.min()), int(lengths.max())
    ids = torch.tensor([[*p, *[pad_id] * (width - len(p))] for p in prompts], device=device)
    equal = (ids == ids[:1]).all(0).long().cumprod(0)
    prefix_length = min(int(equal.sum()), shortest - 1)  # without each last character
    last = torch.arange(width, device=device) == lengths[:, None] - 1
    cache = KVCache(model.n_layer, size)
    return forward_with_shared_prefix(model, ids, prefix_length, last, cache), lengths, cache
