"""Pictures of attention weights: the maps of all heads of a layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from birthplace_lm.data.vocab import MASK
from birthplace_lm.models.gpt import GPT

COLUMNS = 2  # maps side by side
CELL = 9  # pixels of one weight
MIN_MAP_SIZE, MAX_CELL = 180, 20  # pixels; a short text has larger cells, up to those whose labels fit
HEADER, FOOTER, MARGIN, GAP = 84, 80, 26, 18  # pixels
TITLE_SIZE, HEAD_SIZE, DESCENT = 22, 18, 4  # of the text, in pixels
BACKGROUND, TEXT_COLOR, MASKED, ANSWER_COLOR = (255, 255, 255), (40, 40, 40), (228, 228, 228), (225, 85, 0)
# Points of the colormaps viridis and RdBu.
_VIRIDIS = [(68, 1, 84), (67, 62, 133), (48, 104, 142), (33, 145, 140), (53, 183, 121), (144, 215, 67)]
_VIRIDIS += [(253, 231, 37)]
_BLUE_TO_RED = [(33, 102, 172), (103, 169, 207), (247, 247, 247), (239, 138, 98), (178, 24, 43)]
MIN_PAGE_WIDTH = 400  # pixels, for the scale


def attention_pictures(
    model: GPT, text: str, weights: Sequence[Tensor], columns: int = COLUMNS
) -> list[np.ndarray]:
    """One picture per layer of what `attention_weights` returns for a question with its answer.

    All have one colour scale. An attention whose maps are not of single heads says in `map_name` of what.

    Args:
        columns: maps side by side.
    """
    # The MASK after the question predicts the first character of the answer; the last predicts nothing.
    answer = slice(text.index(MASK) if MASK in text else 0, len(text) - 1)
    shown = text.replace(MASK, "|")
    scale = _Scale.of(*weights)
    return [
        attention_picture(
            layer,
            shown,
            answer,
            f"layer {number}: {shown}",
            columns,
            latent_queries=bool(block.latent_queries),
            latent_keys=bool(block.latent_keys),
            map_name=getattr(block.attn, "map_name", "head"),
            scale=scale,
        )
        for number, (layer, block) in enumerate(zip(weights, model.blocks, strict=True), start=1)
    ]


def attention_picture(
    weights: Tensor,
    text: str,
    answer: slice,
    title: str,
    columns: int = COLUMNS,
    latent_queries: bool = False,
    latent_keys: bool = False,
    map_name: str = "head",
    scale: "_Scale | None" = None,
) -> np.ndarray:
    """Draw the attention maps of one layer as (height, width, 3) bytes: one map per head.

    Rows are queries and columns are keys, each with its character. The colour is the square root of the
    weight, from 0 (dark) to 1 (yellow). If there are negative weights or some beyond 1, it is from -n (blue)
    to n (red), the largest weight rounded up; keys after the query are grey. Below the maps stands what the
    rows sum to, if it is not 1.

    Args:
        weights: (heads, T, S).
        text: the characters that the model read; the first T stand beside the rows, the first S above the
            columns.
        answer: the rows that predict the answer; they are marked.
        title: is written above.
        columns: maps side by side.
        latent_queries, latent_keys: rows or columns are latent vectors: the last digit of their number
            stands beside them, and as queries they predict nothing.
        map_name: what a map belongs to.
        scale: the colours; None: by these weights.
    """
    heads, queries_shown, keys_shown = weights.shape
    cell = min(MAX_CELL, max(CELL, -(-MIN_MAP_SIZE // max(queries_shown, keys_shown))))
    tall, wide = cell * queries_shown, cell * keys_shown
    columns = min(heads, columns)
    rows = -(-heads // columns)
    width, height = MARGIN + wide + GAP, MARGIN + HEAD_SIZE + tall + GAP  # of a map with its labels
    page_width = max(columns * width + MARGIN, MIN_PAGE_WIDTH)
    page = np.full((HEADER + rows * height + FOOTER, page_width, 3), BACKGROUND, np.uint8)
    scale = scale or _Scale.of(weights)
    colors = scale.colors(weights.cpu().numpy())
    colors[:, *np.triu_indices(queries_shown, 1, keys_shown)] = MASKED
    corners = [
        (HEADER + row * height + HEAD_SIZE + MARGIN, MARGIN + column * width + MARGIN)
        for row in range(rows)
        for column in range(columns)
    ][:heads]
    marked = range(0) if latent_queries else range(queries_shown)[answer]
    keys, _ = _characters(_digits(keys_shown) if latent_keys else text[:keys_shown], cell, marked)
    _, queries = _characters(_digits(queries_shown) if latent_queries else text[:queries_shown], cell, marked)
    for head, (top, left) in enumerate(corners):
        _place_map(page, top, left, colors[head].repeat(cell, 0).repeat(cell, 1), keys, queries)
        if marked:
            first, last = top + cell * marked[0], top + cell * (marked[-1] + 1)
            page[first:last, left - 3 : left] = page[first:last, left + wide : left + wide + 8] = ANSWER_COLOR
    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    fits = (page_width - MARGIN) / max(1.0, _font(TITLE_SIZE).getlength(title))
    _write(draw, (MARGIN, 4), title, min(TITLE_SIZE, int(TITLE_SIZE * fits)))
    axes = f"down: {'latent ' * latent_queries}queries   across: {'latent ' * latent_keys}keys"
    _write(draw, (MARGIN, 32), axes, HEAD_SIZE)
    if marked:
        _write(draw, (MARGIN, 54), "orange: the answer is predicted here", HEAD_SIZE, ANSWER_COLOR)
    for head, (top, left) in enumerate(corners):
        _write(draw, (left, top - MARGIN - HEAD_SIZE), f"{map_name} {head + 1}", HEAD_SIZE)
    _draw_scale(image, draw, scale, weights)
    return np.asarray(image)


def _place_map(
    page: np.ndarray, top: int, left: int, cells: np.ndarray, above: np.ndarray, beside: np.ndarray
) -> None:
    """Put a map on the page, with the labels of its columns above and those of its rows on the left."""
    tall, wide, _ = cells.shape
    page[top : top + tall, left : left + wide] = cells
    page[top - len(above) : top, left : left + wide] = above
    page[top : top + tall, left - 4 - beside.shape[1] : left - 4] = beside


def _digits(count: int) -> str:
    return "".join(str(number % 10) for number in range(count))


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


@dataclass(frozen=True)
class _Scale:
    """The colours of weights from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, *weights: Tensor) -> Self:
        largest = max(1.0, *(math.ceil(float(w.abs().max()) - 1e-4) for w in weights))
        unsigned = largest == 1.0 and all(w.min() >= 0 for w in weights)
        return cls(0.0 if unsigned else -largest, largest)

    def position(self, weights: np.ndarray) -> np.ndarray:
        """From 0 to 1 along the scale: the square root makes small weights visible."""
        roots = np.sign(weights) * np.sqrt(np.abs(weights).clip(max=self.high) / self.high)
        return roots if self.low == 0.0 else (roots + 1) / 2

    def colors(self, weights: np.ndarray) -> np.ndarray:
        """RGB bytes."""
        points = _VIRIDIS if self.low == 0.0 else _BLUE_TO_RED
        at = np.linspace(0, 1, len(points))
        values = self.position(weights)
        return (
            np.stack([np.interp(values, at, c) for c in zip(*points, strict=True)], -1)
            .round()
            .astype(np.uint8)
        )


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, scale: _Scale, weights: Tensor) -> None:
    """The colours of the weights, at the bottom left, and what the rows sum to, if it is not 1."""
    top, width, height = image.height - FOOTER + 6, 240, 16
    left = 4 * MARGIN
    _write(draw, (MARGIN, top - 2), "weight", HEAD_SIZE)
    along = np.linspace(-1 if scale.low else 0, 1, width)
    bar = scale.colors(np.sign(along) * along**2 * scale.high)[None].repeat(height, 0)
    image.paste(Image.fromarray(bar), (left, top))
    shares = [-1, -0.25, 0, 0.25, 1] if scale.low else [0, 0.1, 0.5, 1]
    if scale.high >= 100:
        shares = [-1, 0, 1]  # the numbers are long
    for share in shares:
        x = left + float(scale.position(np.array(share * scale.high))) * width
        draw.text((x, top + height + 2), f"{share * scale.high:.3g}", TEXT_COLOR, _font(HEAD_SIZE), "ma")
    sums = weights.sum(-1)
    low, high = float(sums.min()), float(sums.max())
    if max(abs(low - 1), abs(high - 1)) > 0.01:
        text = f"rows sum to {low:.2f}" if high - low < 0.01 else f"rows sum to {low:.2f} ... {high:.2f}"
        _write(draw, (MARGIN, top + height + 22), text, HEAD_SIZE)
