"""Dense synthesizer attention whose second layer is each head's own, as the paper writes it."""

import torch
from torch import Tensor, nn

from birthplace_lm.models.attention.synthesizer import SynthesizerAttention


class PerHeadSynthesizerAttention(SynthesizerAttention):
    """softmax(ReLU(x W1 + b1)_i W2_i + b2_i) v, causal, for head i.

    The course, like the authors' code, shares W2 and b2 among the heads.

    Source: Tay et al. 2020, arXiv:2005.00743.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, block_size, dropout)
        head_dim, columns = self.w2.shape
        self.w2 = nn.Parameter(torch.empty(n_head, head_dim, columns).uniform_(-0.001, 0.001))
        self.b2 = nn.Parameter(torch.zeros(n_head, columns))

    def keys(self) -> Tensor:
        return torch.cat((self.w2, self.b2[:, None]), 1).mT
