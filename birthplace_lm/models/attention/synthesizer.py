"""Dense synthesizer attention: a position computes the scores of all others from its own vector alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import ScaledDotProductAttention, merge_heads, split_heads


class SynthesizerAttention(nn.Module):
    """softmax(ReLU(x W1 + b1)_i W2 + b2) v, causal, for head i; no query-key product, no 1/sqrt(D).

    W2 (D, S) and b2 (S) are shared by the heads and cut to the first T columns. S is `block_size - 1`: a
    sequence of `block_size` characters has that many inputs. A later position, which never occurs in
    training, gets the score 0.

    Source: Tay et al. 2020, arXiv:2005.00743; CS224N 2021, assignment 5.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = n_embd // n_head
        columns = block_size - 1
        self.w1 = nn.Linear(n_embd, n_embd)
        self.w2 = nn.Parameter(torch.empty(n_embd // n_head, columns).uniform_(-0.001, 0.001))
        self.b2 = nn.Parameter(torch.zeros(columns))
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.attend = ScaledDotProductAttention(dropout, scale=1.0)
        self.resid_drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        h = split_heads(F.relu(self.w1(x)), self.head_dim)  # (B, H, T, D)
        v = split_heads(self.value(x), self.head_dim)  # (B, H, T, D)
        mask = None
        if cache is not None:
            v, mask = cache.update("value", v), cache.mask
        # The scores h W2 + b2 as a product that the fused kernel computes: queries (h, 1), keys (W2, b2)^T.
        keys = self.keys()
        keys = F.pad(keys, (0, 0, 0, v.shape[2] - keys.shape[-2]))  # cuts, or adds zero rows
        keys = keys.to(h.dtype).expand(*h.shape[:2], -1, -1)
        v = F.pad(v, (0, 1))  # the kernel needs one width everywhere
        y = self.attend(F.pad(h, (0, 1), value=1.0), keys, v, mask)[..., :-1]  # (B, H, T, D)
        return self.resid_drop(self.proj(merge_heads(y)))

    def keys(self) -> Tensor:
        """(W2, b2)^T, (S, D + 1), with a dimension of heads in front if each has its own."""
        return torch.cat((self.w2, self.b2[None])).T
