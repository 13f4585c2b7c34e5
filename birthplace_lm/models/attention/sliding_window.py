"""Sliding-window attention: a position sees the last few only."""

from torch import Tensor

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import distances, visible_keys


class SlidingWindowAttention(VanillaAttention):
    """Vanilla attention to the last `window` positions, the own one included.

    The whole model sees `n_layer (window - 1) + 1` characters. With `full_layers=1` and a window of m it
    resembles a Perceiver AR with m latents: the first layer reads everything into the latents, the others let
    a latent see the last m latents. Up to m characters the two are the same. In a longer sequence every
    position, not only the last m, has a latent and a prediction, and a prediction depends on the latents of
    `(n_layer - 1) (m - 1) + 1` positions, not of m.

    Args:
        window: number of positions.
        full_layers: number of first layers that see everything.
        layer: number of this layer, from 0; the model passes it.

    Raises:
        ValueError: `window` is less than 1, or `full_layers` negative.

    Source: Beltagy et al. 2020, arXiv:2004.05150; Hawthorne et al. 2022, arXiv:2202.07765 (Perceiver AR).
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        block_size: int,
        dropout: float,
        window: int,
        full_layers: int = 0,
        layer: int = 0,
    ) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        if window < 1 or full_layers < 0:
            raise ValueError(
                f"attention.window={window}, full_layers={full_layers}: must be 1 or more, and 0 or more"
            )
        self.window = None if layer < full_layers else window

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        if self.window is None:
            return super().forward(x, cache)
        mask = visible_keys(x, cache) & (distances(x, cache) < self.window)
        return self.output(self.attend_to(*self.project(x), cache, mask))
