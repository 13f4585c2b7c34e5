"""Dropout with 16 random bits per element on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each element to 0 with probability `p`, rounded to 1/65536, and scale the others by 1 / (1 - p).

    On a CPU, torch draws 32 bits per element sequentially, which made a training step with dropout 1.5 times
    as long. On a GPU this is torch's own dropout.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    # The comparison writes 0 and 1 in the type of x: half the time of a boolean that is converted or selects.
    factor = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, round(p * 2**16) - 2**15, out=factor)
    return x * factor.mul_(1 / (1 - p))


class Dropout(nn.Module):
    """`dropout` in training mode, the identity in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
