"""Differential attention: the difference of two attention maps."""

import math

import torch
from torch import Tensor, nn

from birthplace_lm.models.dropout import Dropout, dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import masked_softmax, merge_heads, split_heads


class DifferentialAttention(nn.Module):
    """(softmax(q1 k1^T / sqrt(D)) - lambda softmax(q2 k2^T / sqrt(D))) v for n_head / 2 pairs of heads.

    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_0 with four learned vectors and
    lambda_0 = 0.8 - 0.6 e^(-0.3 layer). Values have 2 D channels. The result of each pair goes through an
    RMSNorm and is multiplied by 1 - lambda_0. There are no biases. The rows of the weights sum to 1 - lambda,
    and weights can be negative.

    Args:
        layer: number of this layer, from 0; the model passes it.

    Raises:
        ValueError: the number of heads is odd.

    Source: Ye et al. 2024, arXiv:2410.05258.
    """

    map_name = "pair"  # in pictures

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float, layer: int = 0) -> None:
        super().__init__()
        if n_head % 2:
            raise ValueError(f"n_head={n_head}: must be even for differential attention")
        self.head_dim = n_embd // n_head
        self.query = nn.Linear(n_embd, n_embd, bias=False)
        self.key = nn.Linear(n_embd, n_embd, bias=False)
        self.value = nn.Linear(n_embd, n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias=False)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(self.head_dim) * 0.1) for _ in range(4)
        )
        self.lambda_0 = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)
        self.attend = _Difference(dropout)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        q = split_heads(self.query(x), self.head_dim)  # (B, H, T, D)
        k = split_heads(self.key(x), self.head_dim)  # (B, H, T, D)
        v = split_heads(self.value(x), 2 * self.head_dim)  # (B, H / 2, T, 2 D)
        mask = None
        if cache is not None:
            k, v, mask = cache.update("key", k), cache.update("value", v), cache.mask
        y = self.attend(q, k, v, mask, self.factor())
        y = self.norm(y.to(self.norm.weight.dtype)) * (1 - self.lambda_0)
        return self.resid_drop(self.proj(merge_heads(y)))

    def factor(self) -> Tensor:
        """Lambda, a scalar, in float32 at least."""
        vectors = (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        q1, k1, q2, k2 = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in vectors)
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_0


class _Difference(nn.Module):
    """The weighted sum of values; heads 2 i and 2 i + 1 are a pair."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, factor: Tensor) -> Tensor:
        weights = self.attention_weights(q, k, v, mask, factor)
        if self.training:
            weights = dropout(weights, self.dropout)
        return weights.to(v.dtype) @ v

    def attention_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, factor: Tensor
    ) -> Tensor:
        """(B, H / 2, T, S); each row sums to 1 - lambda."""
        weights = masked_softmax((q * q.shape[-1] ** -0.5) @ k.mT, mask)
        return weights[:, 0::2] - factor * weights[:, 1::2]
