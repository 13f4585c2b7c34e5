"""The product with softmax that attention variants share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.models.dropout import dropout as drop

_recorded: list[Tensor] | None = None  # what `record_attention_weights` collects


@contextmanager
def record_attention_weights() -> Iterator[list[Tensor]]:
    """Collect the attention weights (B, H, T, T) of every layer that a model computes meanwhile."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def record(weights: Tensor) -> None:
    """Record the weights (B, H, T, T) of a layer; for variants without `scaled_dot_product_attention`."""
    if _recorded is not None:
        _recorded.append(weights.detach().float())


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T scale) v, (B, H, T, D); causal, or where `mask` is True.

    Args:
        dropout: on the attention weights.
        scale: None means 1/sqrt(D).
    """
    causal = mask is None
    if _recorded is not None:
        record(_weights(q, k, mask, scale))
    if q.device.type == "cpu" and dropout > 0.0:
        # The fused kernel knows no dropout on a CPU.
        return drop(_weights(q, k, mask, scale), dropout).to(v.dtype) @ v
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Its backward pass in bfloat16 takes ten times as long as that in float32.
        with torch.autocast("cpu", enabled=False):
            found = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), mask, dropout, causal, scale=scale
            )
        return found.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)
