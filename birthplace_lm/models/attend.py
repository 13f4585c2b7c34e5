"""The product with softmax that attention variants share."""

import torch
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.models.dropout import dropout as drop


def attend(
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
    if q.device.type == "cpu" and dropout > 0.0:
        return _plain(q, k, v, mask, dropout, scale)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Its backward pass in bfloat16 takes ten times as long as that in float32.
        with torch.autocast("cpu", enabled=False):
            found = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), mask, dropout, causal, scale=scale
            )
        return found.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """The fused kernel knows no dropout on a CPU."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return drop(scores.masked_fill(~mask, -torch.inf).softmax(-1), dropout).to(v.dtype) @ v
