"""One model with every attention variant, each of them a layer: `plugins=[every_attention]`."""

import inspect
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from birthplace_lm.config.groups import conf_dir
from birthplace_lm.models.attention.perceiver import CrossAttention, PerceiverBlock
from birthplace_lm.models.gpt import Block

NAMES = sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml"))
# The first and the last block are those of the perceiver, with a latent for each position.
LAYERS = [None, *(name for name in NAMES if name != "perceiver"), None]
OVERRIDES = [
    "plugins=[every_attention]",
    f"model.n_layer={len(LAYERS)}",
    "model.n_head=4",
    "model.attention._target_=every_attention.attention",
    "+model.block={_target_:every_attention.block,_partial_:true}",
    "model.canon=true",
]


def attention(n_embd: int, n_head: int, block_size: int, dropout: float, layer: int) -> nn.Module:
    if (name := LAYERS[layer]) is None:
        return CrossAttention(n_embd, n_head, block_size, dropout)
    settings: Any = OmegaConf.load(conf_dir() / "attention" / f"{name}.yaml")
    factory = instantiate(settings.attention)
    # As in the second of two layers: the first of `perceiver_ar` is plain.
    its_layer = {"layer": 1} if "layer" in inspect.signature(factory).parameters else {}
    made: nn.Module = factory(
        n_embd=n_embd, n_head=n_head, block_size=block_size, dropout=dropout, **its_layer
    )
    return made


def block(
    attention: nn.Module, n_embd: int, dropout: float, layer: int, n_layer: int, canon: bool
) -> nn.Module:
    if LAYERS[layer] is None:
        return PerceiverBlock(attention, n_embd, dropout, layer, n_layer, canon, latents=128)
    return Block(attention, n_embd, dropout, layer, n_layer, canon)
