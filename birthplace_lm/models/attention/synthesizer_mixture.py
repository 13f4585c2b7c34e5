"""Mixture of dot product and dense synthesizer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.sdpa import ScaledDotProductAttention


class MixtureSynthesizerAttention(VanillaAttention):
    """softmax((1 - alpha) q k^T / sqrt(D) + alpha ReLU(q) W2) v, causal, with W2 (D, S).

    alpha is the sigmoid of a learned number, 1/2 at the start. As in the authors' code, the query is the
    hidden layer of the synthesizer, and W2 has no bias and is shared by the heads. S is `block_size - 1`; a
    later position gets the score 0 from it.

    Source: Tay et al. 2020, arXiv:2005.00743; dense_plus_alpha of its code in mesh-tensorflow.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.w2 = nn.Parameter(torch.empty(self.head_dim, block_size - 1).uniform_(-0.001, 0.001))
        self.alpha = nn.Parameter(torch.zeros(1))
        self.attend = ScaledDotProductAttention(dropout, scale=1.0)

    def weighted_values(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # Both scores as one product: queries ((1 - alpha) q / sqrt(D), alpha ReLU(q)), keys (k, W2^T).
        alpha = self.alpha.sigmoid().to(q.dtype)
        queries = torch.cat(((1 - alpha) * self.head_dim**-0.5 * q, alpha * F.relu(q)), -1)
        columns = F.pad(self.w2.T, (0, 0, 0, k.shape[2] - self.w2.shape[1])).to(k.dtype)
        keys = torch.cat((k, columns.expand(*k.shape[:2], -1, -1)), -1)
        y: Tensor = self.attend(
            queries, keys, F.pad(v, (0, self.head_dim)), mask
        )  # the kernel needs one width
        return y[..., : self.head_dim]
