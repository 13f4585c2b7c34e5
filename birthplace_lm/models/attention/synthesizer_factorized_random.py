"""Factorized random synthesizer attention: scores of low rank that do not depend on the text."""

import torch
from torch import Tensor, nn

from birthplace_lm.models.attention.synthesizer_random import PositionAttention


class FactorizedRandomSynthesizerAttention(PositionAttention):
    """softmax(L_i R_i^T) v, causal, with matrices L_i and R_i (block_size, rank) for head i.

    They are drawn so that scores have a standard deviation of 0.1.

    Args:
        rank: columns of L and R.

    Raises:
        ValueError: `rank` is less than 1.

    Source: Tay et al. 2020, arXiv:2005.00743.
    """

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float, rank: int) -> None:
        super().__init__(n_embd, n_head, dropout)
        if rank < 1:
            raise ValueError(f"attention.rank={rank}: must be 1 or more")
        std = (0.1 / rank**0.5) ** 0.5
        self.left = nn.Parameter(torch.randn(n_head, block_size, rank) * std)
        self.right = nn.Parameter(torch.randn(n_head, block_size, rank) * std)

    def position_scores(self, queries: Tensor, keys: int) -> Tensor:
        return (self.left[:, queries] @ self.right[:, None, :keys].mT).transpose(0, 1)
