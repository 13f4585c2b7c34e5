"""Optimizers as factories: `factory(model, lr)` gives what trains the whole model."""

from torch import nn
from torch.optim import AdamW, Optimizer


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, decay_all_but_bias: bool
) -> Optimizer:
    """AdamW whose weight decay leaves out vectors: biases and LayerNorm gains.

    Args:
        decay_all_but_bias: decay every parameter without "bias" in its name instead, LayerNorm gains and
            whatever else a variant names included. The 2021 protocol.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    named = list(model.named_parameters())
    decays = {name: "bias" not in name if decay_all_but_bias else p.dim() >= 2 for name, p in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=tuple(betas), fused=True)
