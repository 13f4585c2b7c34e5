"""Attention weights of a text, and their picture."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.sdpa import record_attention_weights

COLUMNS = 2  # maps side by side; TensorBoard shows a picture about 350 pixels wide
CELL = 9  # pixels of one weight
MIN_MAP_SIZE = 180  # pixels; a short text has larger cells
HEADER, FOOTER, MARGIN, GAP = 62, 58, 26, 18  # pixels
TITLE_SIZE, HEAD_SIZE, DESCENT = 22, 18, 4  # of the text, in pixels
BACKGROUND, TEXT_COLOR, MASKED, ANSWER_COLOR = (255, 255, 255), (40, 40, 40), (228, 228, 228), (225, 85, 0)
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


def attention_picture(weights: Tensor, text: str, answer: slice, title: str) -> np.ndarray:
    """Draw the attention maps of one layer as (height, width, 3) bytes: one map per head.

    Rows are queries and columns are keys, each with its character. The colour is the square root of the
    weight, from 0 (dark) to 1 (yellow); masked positions are grey.

    Args:
        weights: (heads, T, T).
        text: the T characters that the model read.
        answer: the rows that predict the answer; they are marked.
        title: is written above.
    """
    heads, length, _ = weights.shape
    cell = max(CELL, -(-MIN_MAP_SIZE // length))
    size = cell * length
    columns = min(heads, COLUMNS)
    rows = -(-heads // columns)
    width, height = MARGIN + size + GAP, MARGIN + HEAD_SIZE + size + GAP  # of a map with its labels
    page = np.full((HEADER + rows * height + FOOTER, columns * width + MARGIN, 3), BACKGROUND, np.uint8)
    colors = _colors(weights.clamp(0, 1).sqrt().cpu().numpy())
    colors[:, *np.triu_indices(length, 1)] = MASKED
    corners = [
        (HEADER + row * height + HEAD_SIZE + MARGIN, MARGIN + column * width + MARGIN)
        for row in range(rows)
        for column in range(columns)
    ][:heads]
    marked = range(length)[answer]
    keys, queries = _characters(text, cell, marked)
    for head, (top, left) in enumerate(corners):
        page[top : top + size, left : left + size] = colors[head].repeat(cell, 0).repeat(cell, 1)
        page[top - len(keys) : top, left : left + size] = keys
        page[top : top + size, left - 4 - queries.shape[1] : left - 4] = queries
        if marked:
            first, last = top + cell * marked[0], top + cell * (marked[-1] + 1)
            page[first:last, left - 3 : left] = page[first:last, left + size : left + size + 8] = ANSWER_COLOR
    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    _write(draw, (MARGIN, 4), title, TITLE_SIZE)
    _write(draw, (MARGIN, 32), "down: queries   across: keys", HEAD_SIZE)
    _write(draw, (MARGIN + 250, 32), "orange: the answer is predicted here", HEAD_SIZE, ANSWER_COLOR)
    for head, (top, left) in enumerate(corners):
        _write(draw, (left, top - MARGIN - HEAD_SIZE), f"head {head + 1}", HEAD_SIZE)
    _draw_scale(image, draw)
    return np.asarray(image)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    color: tuple[int, int, int] = TEXT_COLOR,
) -> None:
    draw.text(at, text, color, _font(size))


def _characters(text: str, cell: int, marked: range) -> tuple[np.ndarray, np.ndarray]:
    """The characters of a text as the labels of columns, above a map, and of rows, beside it."""
    font = _font(cell + 1)
    across = Image.new("RGB", (cell * len(text), cell + DESCENT), BACKGROUND)
    down = Image.new("RGB", (cell, cell * len(text)), BACKGROUND)
    for strip, step in ((across, (cell, 0)), (down, (0, cell))):
        draw = ImageDraw.Draw(strip)
        for i, c in enumerate(text):
            center = (i * step[0] + cell / 2, i * step[1] + cell / 2)
            color = ANSWER_COLOR if i in marked and strip is down else TEXT_COLOR
            draw.text(center, c, color, font, anchor="mm")
    return np.asarray(across), np.asarray(down)


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    """The colours of the weights, at the bottom left."""
    top, width, height = image.height - FOOTER + 6, 240, 16
    left = 4 * MARGIN
    _write(draw, (MARGIN, top - 2), "weight", HEAD_SIZE)
    bar = _colors(np.linspace(0, 1, width))[None].repeat(height, 0)
    image.paste(Image.fromarray(bar), (left, top))
    for weight in (0, 0.1, 0.5, 1):
        x = left + math.sqrt(weight) * width
        draw.text((x, top + height + 2), f"{weight:g}", TEXT_COLOR, _font(HEAD_SIZE), "ma")


def _colors(values: np.ndarray) -> np.ndarray:
    """RGB bytes for values from 0 to 1."""
    at = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(values, at, channel) for channel in zip(*_SCALE, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)
