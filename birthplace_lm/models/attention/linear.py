"""Linear attention: a product of feature maps in place of the softmax."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.dropout import dropout


class LinearAttention(VanillaAttention):
    """sum_s phi(q_t) . phi(k_s) v_s / sum_s phi(q_t) . phi(k_s) over s <= t, with phi(x) = elu(x) + 1.

    Computed in float32, and as relu(x) + exp(min(x, 0)): elu(x) + 1 is 0 for x below -17, and 0 / 0 follows.

    The sum over earlier positions could be kept as a state of D x D numbers for each head. At the lengths of
    this task, 128 at most, the products of all pairs are cheaper, and give the weights that are drawn.

    Source: Katharopoulos et al. 2020, arXiv:2006.16236.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.attend = _LinearProduct(dropout)


class _LinearProduct(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = self.attention_weights(q, k, v, mask)
        if self.training:
            weights = dropout(weights, self.dropout)
        return weights.to(v.dtype) @ v

    def attention_weights(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, T, S); each row sums to 1."""
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        with torch.autocast(q.device.type, enabled=False):  # half precision overflows in sums of products
            q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
            products = (_feature_map(q) @ _feature_map(k).mT).masked_fill(~mask, 0)
            return products / products.sum(-1, keepdim=True)


def _feature_map(x: Tensor) -> Tensor:
    return F.relu(x) + x.clamp(max=0).exp()
