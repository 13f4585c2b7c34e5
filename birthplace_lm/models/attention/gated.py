"""Gated attention: a sigmoid gate after the weighted sum of values."""

from torch import Tensor, nn

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.kv_cache import LayerKVCache


class GatedAttention(VanillaAttention):
    """Vanilla attention times sigmoid(x W + b), before the output projection.

    Args:
        per_head: one gate for each head instead of one for each channel.

    Source: Qiu et al. 2025, arXiv:2505.06708.
    """

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float, per_head: bool = False
    ) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        self.gate = nn.Linear(n_embd, n_head if per_head else n_embd)

    def forward(self, x: Tensor, cache: LayerKVCache | None = None) -> Tensor:
        y = self.attend_to(*self.project(x), cache)
        gate = self.gate(x).sigmoid()
        if gate.shape[-1] != y.shape[-1]:
            gate = gate.repeat_interleave(self.head_dim, -1)
        return self.output(y * gate)
