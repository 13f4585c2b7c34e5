"""Grouped-query attention: several query heads share one head of keys and values."""

from torch import nn

from birthplace_lm.models.attention.vanilla import VanillaAttention


class GroupedQueryAttention(VanillaAttention):
    """Vanilla attention with fewer heads of keys and values, which make the cache smaller.

    Args:
        n_kv_head: heads of keys and values; divides `n_head`. 1 is multi-query attention.

    Raises:
        ValueError: it does not divide `n_head`.

    Source: Ainslie et al. 2023, arXiv:2305.13245; Shazeer 2019, arXiv:1911.02150 (multi-query).
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float, n_kv_head: int) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        if n_kv_head < 1 or n_head % n_kv_head:
            raise ValueError(f"attention.n_kv_head={n_kv_head}: must divide model.n_head={n_head}")
        self.key = nn.Linear(n_embd, n_kv_head * self.head_dim)
        self.value = nn.Linear(n_embd, n_kv_head * self.head_dim)
