"""Additive attention: a small network scores each pair of positions."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.sdpa import ScoreAttention

PAIRS_AT_ONCE = 2**22  # numbers (B, H, T, S, D) of a slice of queries: 16 MiB in float32


class AdditiveAttention(VanillaAttention):
    """softmax(w . tanh(W_q x_t + W_k x_s)) v, causal, with a vector w (D) for each head; no 1/sqrt(D).

    The hidden layer of all pairs would take 2 GiB for a batch of 128 x 128 characters. It is computed for a
    few queries at a time, and computed again in the backward pass.

    Source: Bahdanau et al. 2014, arXiv:1409.0473.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.score = nn.Parameter(torch.randn(n_head, self.head_dim) * self.head_dim**-0.5)
        self.attend = ScoreAttention(dropout)

    def weighted_values(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        queries_at_once = max(1, PAIRS_AT_ONCE // k.numel())
        parts = []
        for part in q.split(queries_at_once, 2):
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._scores, part, k, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._scores(part, k))
        y: Tensor = self.attend(torch.cat(parts, 2), v, mask)
        return y

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, T, S)."""
        hidden = (q[:, :, :, None] + k[:, :, None]).tanh()  # (B, H, T, S, D)
        return (hidden @ self.score[:, None, :, None].to(hidden.dtype))[..., 0]
