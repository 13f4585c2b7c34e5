"""Causal self-attention with query-key products."""

from torch import Tensor, nn

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScaledDotProductAttention


class VanillaAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v, causal.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.key = nn.Linear(n_embd, n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.attend = ScaledDotProductAttention(dropout)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        q = self._heads(self.query(x))  # (B, H, T, D)
        k = self._heads(self.key(x))  # (B, H, T, D)
        v = self._heads(self.value(x))  # (B, H, T, D)
        mask = None
        if cache is not None:
            k, v, mask = cache.update("key", k), cache.update("value", v), cache.mask
        y = self.attend(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, T, C)
        return self.resid_drop(self.proj(y))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)
