"""Rotary position embedding: queries and keys are rotated by their position."""

import torch
from torch import Tensor

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import query_positions


class RopeAttention(VanillaAttention):
    """Vanilla attention in which a score depends on the distance of query and key, not on their positions.

    Of the D channels of a head, each pair (0, 1), (2, 3) ... number i is turned by the angle
    t base^(-2 i / D) at position t. Keys are rotated before they are stored.

    Args:
        base: the slowest pair turns by about t / base.

    Raises:
        ValueError: a head has an odd number of channels, or `base` is not above 0.

    Source: Su et al. 2021, arXiv:2104.09864, with neighbouring channels as pairs; CS224N 2024.
    """

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float, base: float = 10_000.0
    ) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        if self.head_dim % 2:
            raise ValueError(
                f"n_head={n_head}: leaves {self.head_dim} channels for a head; rope needs an even number"
            )
        if not 0 < base < float("inf"):
            raise ValueError(f"attention.base={base}: must be above 0")
        self.base = base

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        q, k, v = self.project(x)
        positions = query_positions(x, cache)
        return self.output(self.attend_to(self.rotate(q, positions), self.rotate(k, positions), v, cache))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn (B, H, T, D) by the angles of the positions (B or 1, T), in float32 or better."""
        pairs = torch.arange(
            0, self.head_dim, 2, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        angles = positions[:, None, :, None] * self.base ** (-pairs / self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)
