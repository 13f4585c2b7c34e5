"""Mixture of dot product and random synthesizer."""

import torch
from torch import Tensor, nn

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScoreAttention, merge_heads, query_positions, visible_keys


class RandomMixtureSynthesizerAttention(VanillaAttention):
    """softmax((1 - alpha) q k^T / sqrt(D) + alpha R_i) v, causal, with learned R_i (block_size, block_size).

    alpha is the sigmoid of a learned number, 1/2 at the start.

    Source: Tay et al. 2020, arXiv:2005.00743; random_plus_alpha of its code in mesh-tensorflow.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.scores = nn.Parameter(torch.randn(n_head, block_size, block_size) * 0.02)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.attend = ScoreAttention(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        q, k, v = self.project(x)
        mask, queries = visible_keys(x, cache), query_positions(x, cache)
        if cache is not None:
            k, v = cache.update("key", k), cache.update("value", v)
        alpha = self.alpha.sigmoid()
        products = q @ k.mT * self.head_dim**-0.5
        scores = (1 - alpha) * products + alpha * self.scores[:, queries, : k.shape[2]].transpose(0, 1)
        return self.output(merge_heads(self.attend(scores, v, mask)))
