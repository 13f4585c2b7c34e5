"""Short causal convolutions between the parts of a block ("Canon layers")."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import query_positions

KERNEL = 4


class CausalConvolution(nn.Module):
    """x_t + sum_i w_i x_(t - i) for i = 0 ... 3, with a weight for each channel and no bias.

    Args:
        n_embd: channels.
        name: under which the cache stores the input; each convolution of a block has its own.

    Source: Allen-Zhu 2025, arXiv:2512.17351 (Physics of Language Models 4.1).
    """

    def __init__(self, n_embd: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.empty(KERNEL, n_embd).uniform_(-(KERNEL**-0.5), KERNEL**-0.5))

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        if cache is None:
            padded = F.pad(x, (0, 0, KERNEL - 1, 0))
            past = [padded[:, KERNEL - 1 - i : padded.shape[1] - i] for i in range(KERNEL)]
        else:
            seen = x if cache.hidden is None else x.masked_fill(cache.hidden[..., None], 0)
            stored = cache.update(self.name, seen[:, None])[:, 0]  # (B, S, C)
            rows = torch.arange(len(x), device=x.device)[:, None]
            positions = query_positions(x, cache)
            past = [
                stored[rows, (positions - i).clamp(min=0)] * (positions >= i)[..., None]
                for i in range(KERNEL)
            ]
        return x + sum(w * part for w, part in zip(self.weight, past, strict=True))
