"""Factorized dense synthesizer attention: each score is the product of two of few numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScoreAttention, merge_heads, split_heads, visible_keys


class FactorizedDenseSynthesizerAttention(nn.Module):
    """softmax(score) v, causal; score of position j = A[j // columns] B[j mod columns].

    For head i, A (rows numbers) and B (columns numbers) are linear in ReLU(x W1 + b1)_i, so that every
    position has a score of its own. Repeating both, as some public code does, gives no more different scores
    than the least common multiple of their lengths.

    Args:
        rows, columns: lengths of A and B.

    Raises:
        ValueError: rows times columns are fewer than `block_size`.

    Source: Tay et al. 2020, arXiv:2005.00743.
    """

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float, rows: int, columns: int
    ) -> None:
        super().__init__()
        if min(rows, columns) < 1 or rows * columns < block_size:
            raise ValueError(
                f"attention.rows={rows}, columns={columns}: rows x columns must be at least"
                f" model.block_size={block_size}, and both must be 1 or more"
            )
        self.head_dim = n_embd // n_head
        self.w1 = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.rows, self.row_bias = _layers(n_head, self.head_dim, rows)
        self.columns, self.column_bias = _layers(n_head, self.head_dim, columns)
        self.attend = ScoreAttention(dropout)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        h = split_heads(F.relu(self.w1(x)), self.head_dim)  # (B, H, T, D)
        v = split_heads(self.value(x), self.head_dim)  # (B, H, T, D)
        mask = visible_keys(x, cache)
        if cache is not None:
            v = cache.update("value", v)
        a = h @ self.rows + self.row_bias  # (B, H, T, rows)
        b = h @ self.columns + self.column_bias  # (B, H, T, columns)
        scores = (a[..., None] * b[..., None, :]).flatten(-2)[..., : v.shape[2]]  # (B, H, T, S)
        return self.resid_drop(self.proj(merge_heads(self.attend(scores, v, mask))))


def _layers(n_head: int, head_dim: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (H, D, width) and biases (H, 1, width); biases of 1 let both factors learn from the start."""
    return nn.Parameter(torch.randn(n_head, head_dim, width) * 0.02), nn.Parameter(
        torch.ones(n_head, 1, width)
    )
