"""Random synthesizer attention: scores that do not depend on the text at all."""

import torch
from torch import Tensor, nn

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScoreAttention, merge_heads, query_positions, split_heads, visible_keys


class PositionAttention(nn.Module):
    """softmax(S_i) v, causal, with scores S_i of head i that depend on the positions alone."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = n_embd // n_head
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.attend = ScoreAttention(dropout)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        v = split_heads(self.value(x), self.head_dim)  # (B, H, T, D)
        mask = visible_keys(x, cache)
        if cache is not None:
            v = cache.update("value", v)
        scores = self.position_scores(query_positions(x, cache), v.shape[2])
        return self.resid_drop(self.proj(merge_heads(self.attend(scores, v, mask))))

    def position_scores(self, queries: Tensor, keys: int) -> Tensor:
        """Scores (B or 1, H, T, S) of the keys at 0 ... S - 1 for queries at positions (B or 1, T)."""
        raise NotImplementedError


class RandomSynthesizerAttention(PositionAttention):
    """softmax(R_i) v, causal, with a matrix R_i (block_size, block_size) of scores for head i.

    Args:
        learned: train R; otherwise it stays as drawn and is saved with the weights.
        std: R is drawn from N(0, std^2).

    Source: Tay et al. 2020, arXiv:2005.00743.
    """

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float, learned: bool, std: float
    ) -> None:
        super().__init__(n_embd, n_head, dropout)
        scores = torch.randn(n_head, block_size, block_size) * std
        if learned:
            self.scores = nn.Parameter(scores)
        else:
            self.register_buffer("scores", scores)

    def position_scores(self, queries: Tensor, keys: int) -> Tensor:
        return self.scores[:, queries, :keys].transpose(0, 1)
