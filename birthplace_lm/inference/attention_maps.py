"""Attention weights of a text, and their picture."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.sdpa import record_attention_weights

MAP_SIZE = 168  # minimum width of a map in pixels
GAP, LEFT, TOP = 6, 64, 40  # pixels between maps, and margins for the labels
BACKGROUND, TEXT_COLOR, MASKED = (255, 255, 255), (40, 40, 40), (228, 228, 228)
# Seven points of the colormap viridis.
_SCALE = [(68, 1, 84), (67, 62, 133), (48, 104, 142), (33, 145, 140), (53, 183, 121), (144, 215, 67)]
_SCALE += [(253, 231, 37)]


@torch.no_grad()
def attention_weights(model: GPT, vocab: CharVocab, text: str) -> tuple[str, Tensor | None]:
    """The attention weights of every head for a text, or for its end if it is longer than the block.

    Returns:
        The text that the model reads, and weights (layers, heads, T, T), or None if the attention variant
        does not provide them.
    """
    ids = vocab.encode("".join(c for c in text if c in vocab))[-model.block_size :]
    with record_attention_weights(model) as recorded:
        model(torch.tensor([ids], device=model.tok_emb.weight.device))
    weights = torch.cat(recorded) if len(recorded) == model.n_layer else None
    return vocab.decode(ids), weights


def attention_picture(weights: Tensor, text: str) -> np.ndarray:
    """Draw attention maps as (height, width, 3) bytes: one row per layer, one column per head.

    In each map, rows are queries and columns are keys. The colour is the square root of the weight, from 0
    (dark) to 1 (yellow); masked positions are grey.

    Args:
        weights: (layers, heads, T, T).
        text: the text that the model read, written above the maps.
    """
    layers, heads, length, _ = weights.shape
    pixels = -(-MAP_SIZE // length)
    cell = pixels * length
    colors = _colors(weights.clamp(0, 1).sqrt().cpu().numpy())
    colors[:, :, *np.triu_indices(length, 1)] = MASKED
    page = np.full((TOP + layers * (cell + GAP), LEFT + heads * (cell + GAP), 3), BACKGROUND, np.uint8)
    for layer in range(layers):
        for head in range(heads):
            y, x = TOP + layer * (cell + GAP), LEFT + head * (cell + GAP)
            page[y : y + cell, x : x + cell] = colors[layer, head].repeat(pixels, 0).repeat(pixels, 1)
    image = Image.fromarray(page)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.text((LEFT, 2), text, TEXT_COLOR, font)
    for head in range(heads):
        draw.text((LEFT + head * (cell + GAP), 20), f"head {head + 1}", TEXT_COLOR, font)
    for layer in range(layers):
        draw.text((4, TOP + layer * (cell + GAP)), f"layer {layer + 1}", TEXT_COLOR, font)
    return np.asarray(image)


def _colors(values: np.ndarray) -> np.ndarray:
    """RGB bytes for values from 0 to 1."""
    at = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(values, at, channel) for channel in zip(*_SCALE, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)
