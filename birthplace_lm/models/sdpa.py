"""Scaled dot-product attention, shared by the attention variants, and a recorder of attention weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.dropout import dropout


class ScaledDotProductAttention(nn.Module):
    """softmax(q k^T scale) v, (B, H, T, D): causal, or where `mask` is True. It has no parameters.

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
        causal = mask is None
        if q.device.type == "cpu" and p > 0.0:  # torch's fused CPU kernel does not support dropout
            return dropout(self.attention_weights(q, k, v, mask), p).to(v.dtype) @ v
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # The backward pass of the CPU kernel takes ten times as long in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(
                    q.float(), k.float(), v.float(), mask, p, causal, scale=self.scale
                )
            return y.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, p, causal, scale=self.scale)

    def attention_weights(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, T, S) for T queries and S keys; each row sums to 1."""
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        return scores.masked_fill(~mask, -torch.inf).softmax(-1)


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
