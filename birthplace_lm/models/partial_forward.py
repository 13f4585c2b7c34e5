"""Forward passes of a GPT that compute a prefix that all rows share only once."""

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.kv_cache import KVCache


def forward_with_shared_prefix(
    model: GPT, ids: Tensor, prefix_length: int, select: Tensor, cache: KVCache
) -> Tensor:
    """`model(ids, select=select)`, which computes a prefix that all rows share only once.

    Args:
        prefix_length: the first `prefix_length` characters are equal in all rows; less than T.
        select: (B, T) of bool, false within the prefix.
        cache: an empty one, which afterwards holds all of `ids`.
    """
    if prefix_length:
        cache.advance(prefix_length, ids.device)
        model(ids[:1, :prefix_length], cache, select[:1, :prefix_length])
        cache.expand_batch(len(ids))
    cache.advance(ids.shape[1] - prefix_length, ids.device)
    logits: Tensor = model(ids[:, prefix_length:], cache, select[:, prefix_length:])
    return logits


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
    counts = [len(prompt) for prompt in prompts]
    width, lengths = max(counts), torch.tensor(counts, device=device)
    ids = torch.tensor([[*p, *[pad_id] * (width - len(p))] for p in prompts], device=device)
    shared = sum(1 for _ in takewhile(lambda ids: len({*ids}) == 1, zip(*prompts, strict=False)))
    prefix_length = min(shared, min(counts) - 1)  # without each last character
    last = torch.arange(width, device=device) == lengths[:, None] - 1
    cache = KVCache(model.n_layer, size)
    return forward_with_shared_prefix(model, ids, prefix_length, last, cache), lengths, cache
