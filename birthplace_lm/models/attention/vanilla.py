"""Causal self-attention with query-key products."""

from torch import Tensor, nn

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScaledDotProductAttention, merge_heads, split_heads


class VanillaAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v, causal.

    Variants derive from it: they override `weighted_values`, or `forward` and use `project`, `attend_to` and
    `output` in it.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = n_embd // n_head
        self.key = nn.Linear(n_embd, n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.attend: nn.Module = ScaledDotProductAttention(dropout)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        return self.output(self.attend_to(*self.project(x), cache))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, D)."""
        q, k, v = (split_heads(linear(x), self.head_dim) for linear in (self.query, self.key, self.value))
        return q, k, v

    def attend_to(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKVCache | None, mask: Tensor | None = None
    ) -> Tensor:
        """The concatenated outputs of the heads, (B, T, C).

        Args:
            q, k, v: (B, H, T, D); k and v can have fewer heads.
            cache: stores k and v, and adds those of earlier positions.
            mask: (B or 1, H or 1, T, S), True where visible or numbers to add to the scores; None: causal.
        """
        if cache is not None:
            k, v = cache.update("key", k), cache.update("value", v)
            mask = cache.mask if mask is None else mask
        return merge_heads(self.weighted_values(q, k, v, mask))

    def weighted_values(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """For each head the sum of the values by their weights, (B, H, T, D).

        Args:
            q, k, v: (B, H, T, D), (B, H, S, D), (B, H, S, D); k and v of all positions so far.
            mask: see `attend_to`.
        """
        y: Tensor = self.attend(q, k, v, mask)
        return y

    def output(self, y: Tensor) -> Tensor:
        """What is added to the residual stream, (B, T, C)."""
        return self.resid_drop(self.proj(y))
