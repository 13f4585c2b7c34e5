"""What attention variants share: the softmax over earlier positions, and a recorder of their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.dropout import dropout
from birthplace_lm.models.float32_products import fused_attention
from birthplace_lm.models.kv_cache import LayerKVCache


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, T, H D) to (B, H, T, D)."""
    return x.unflatten(2, (-1, head_dim)).transpose(1, 2)


def merge_heads(y: Tensor) -> Tensor:
    """(B, H, T, D) to (B, T, H D)."""
    return y.transpose(1, 2).flatten(2)


def query_positions(x: Tensor, cache: LayerKVCache | None) -> Tensor:
    """The positions (B or 1, T) of the T characters of `x` (B, T, C)."""
    return torch.arange(x.shape[1], device=x.device)[None] if cache is None else cache.positions


def visible_keys(x: Tensor, cache: LayerKVCache | None) -> Tensor:
    """The causal mask (B or 1, 1, T, S): True where the query at T may look at the key at position S."""
    if cache is not None:
        return cache.mask
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]


def distances(x: Tensor, cache: LayerKVCache | None) -> Tensor:
    """(B or 1, 1, T, S): position of the query minus position of the key."""
    keys = torch.arange(visible_keys(x, cache).shape[-1], device=x.device)
    return query_positions(x, cache)[:, None, :, None] - keys


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension, in float32 at least, of what the mask shows.

    Args:
        scores: (B or 1, H, T, S).
        mask: True where visible, or numbers that are added to the scores; None means causal.
    """
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask.dtype == torch.bool:  # an addition takes a third of the time of filling, and its gradient none
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return (scores + mask).softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class ScaledDotProductAttention(nn.Module):
    """softmax(q k^T scale) v, (B, H, T, D): causal, or as `mask` says. It has no parameters.

    `k` and `v` may have fewer heads than `q`: each of them then serves as many neighbouring heads of `q`.
    The mask is True where a key is visible, or a number that is added to the score.

    Args:
        dropout: on the attention weights, in training mode.
        scale: None means 1/sqrt(D).
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        p = self.dropout if self.training else 0.0
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        causal = mask is None
        if q.device.type == "cpu" and p > 0.0:  # torch's fused CPU kernel does not support dropout
            return dropout(self.attention_weights(q, k, v, mask), p).to(v.dtype) @ v
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # The backward pass of the CPU kernel takes ten times as long in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                y = fused_attention(q.float(), k.float(), v.float(), mask, causal, self.scale)
            return y.to(q.dtype)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        if q.device.type == "cpu":
            return fused_attention(q, k, v, mask, causal, self.scale)
        return F.scaled_dot_product_attention(q, k, v, mask, p, causal, scale=self.scale)

    def attention_weights(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, T, S) for T queries and S keys; each row sums to 1."""
        if k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return masked_softmax((q * scale) @ k.mT, mask)


class ScoreAttention(nn.Module):
    """softmax(scores) v for scores that are no product of queries and keys. It has no parameters.

    Args:
        dropout: on the attention weights, in training mode.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, scores: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, T, D) for scores (B or 1, H, T, S) and v (B, H, S, D); `mask` as in `masked_softmax`."""
        weights = self.attention_weights(scores, v, mask)
        if self.training and self.dropout > 0.0:
            weights = dropout(weights.expand(len(v), -1, -1, -1), self.dropout)
        return weights.to(v.dtype) @ v

    def attention_weights(self, scores: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B or 1, H, T, S); each row sums to 1."""
        return masked_softmax(scores, mask)


@contextmanager
def record_attention_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention weights (B, H, T, S) of every layer that the model computes in the block.

    Forward hooks record each module that has a method `attention_weights` with the arguments of its
    `forward`. A variant without `ScaledDotProductAttention` can define that method itself.
    """
    recorded: list[Tensor] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        recorded.append(module.attention_weights(*args, **kwargs).detach().float())

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "attention_weights")
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
