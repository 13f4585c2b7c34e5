"""Attention with linear biases: the score of a key falls with its distance."""

import torch
from torch import Tensor

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import distances, visible_keys


class AlibiAttention(VanillaAttention):
    """Vanilla attention whose scores are lessened by m_i (t - s), m_i = 2^(-8 i / H) for head i = 1 ... H.

    Source: Press et al. 2021, arXiv:2108.12409; the slopes for a number of heads that is a power of two, also
    used for other numbers.
    """

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        q, k, v = self.project(x)
        heads = q.shape[1]
        distance = distances(x, cache)
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=x.device) / heads)
        bias = (-slopes[:, None, None] * distance).masked_fill(~visible_keys(x, cache), -float("inf"))
        return self.output(self.attend_to(q, k, v, cache, bias))
