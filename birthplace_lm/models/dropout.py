"""Dropout that a CPU draws sixteen bits at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout(x: Tensor, p: float) -> Tensor:
    """Set every number to 0 with probability `p`, to 1/65536 exactly, and scale the others by 1 / (1 - p).

    Torch draws a number of 32 bits for each, one after the other, and its fused attention knows no dropout on
    a CPU: a step with dropout took half as long again. On a GPU this is torch's own.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = drawn.view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits >= round(p * 2**16) - 2**15
    # One product, whose gradient is one more: a choice between x and 0 takes a fifth longer.
    return x * torch.where(kept, x.new_tensor(1 / (1 - p)), x.new_zeros(()))


class Dropout(nn.Module):
    """`dropout` while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
