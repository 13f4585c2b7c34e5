"""The fused kernel that attention variants share."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Its backward pass in bfloat16 takes ten times as long as that in float32.
        with torch.autocast("cpu", enabled=False):
            found = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), mask, dropout, causal, scale=scale
            )
        return found.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
