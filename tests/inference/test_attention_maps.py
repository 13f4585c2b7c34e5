"""Attention weights and their picture."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from birthplace_lm.analysis import attention_page
from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import options
from birthplace_lm.data.questions import QuestionTemplate, normalise
from birthplace_lm.data.vocab import MASK, CharVocab
from birthplace_lm.errors import InputError
from birthplace_lm.inference import attention_pictures as pictures_module
from birthplace_lm.inference.attention_maps import attention_weights
from birthplace_lm.inference.attention_pictures import (
    ANSWER_COLOR,
    CELL,
    FOOTER,
    HEADER,
    MARGIN,
    MASKED,
    attention_picture,
    attention_pictures,
)
from birthplace_lm.inference.decoding import question_prompt
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.sdpa import record_attention_weights

TEXT = f"Where was Ada born?{MASK}Rome{MASK}"


@pytest.fixture
def vocab() -> CharVocab:
    return CharVocab.from_text(TEXT.replace(MASK, ""))


def expected(attention: str, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """(H, T, T), head by head and position by position, as the formulas in the papers have it."""
    length, heads = x.shape[0], 2
    depth = x.shape[1] // heads
    weights = torch.zeros(heads, length, length)
    for head in range(heads):
        own = slice(head * depth, (head + 1) * depth)
        for t in range(length):
            if attention == "vanilla":
                q, k = layer.query(x)[t, own], layer.key(x)[: t + 1, own]
                scores = k @ q / depth**0.5
            else:
                h = torch.relu(layer.w1(x))[t, own]
                scores = h @ layer.w2[:, : t + 1] + layer.b2[: t + 1]
            weights[head, t, : t + 1] = torch.exp(scores) / torch.exp(scores).sum()
    return weights


def test_the_text_is_the_one_that_is_answered() -> None:
    """Bug: a curly apostrophe was left out, where the model reads a plain one."""
    vocab = CharVocab.from_text("Where was Al O'Hara born?")
    model = build_model(compose(["model=tiny"]).model, len(vocab)).eval()
    text, _ = attention_weights(model, vocab, f"Where was Al O\u2019Hara born?{MASK}")
    assert text == f"Where was Al O'Hara born?{MASK}"


@pytest.mark.parametrize("name", [f"Al{MASK} O'Hara", "O" * 90, "Jose\u0301", f"Al {'O' * 88}"])
def test_the_picture_is_of_the_text_that_is_answered(name: str, tmp_path: Path) -> None:
    """Bug: a typed MASK was read, a long name was cut at another place, an accent was left out."""
    vocab = CharVocab.from_text("Where was Al O'Hara José born?")
    model = build_model(compose(["model=tiny"]).model, len(vocab)).eval()
    trained = TrainedModel(model, vocab, QuestionTemplate.parse("Where was {name} born?"))
    texts = []

    def pictures(model: GPT, text: str, weights: Any) -> list[np.ndarray]:
        texts.append(text)
        return [np.zeros((4, 4, 3), np.uint8)]

    with mock.patch.object(attention_page, "attention_pictures", pictures):
        answer = attention_page.write_attention(trained, name, tmp_path / "out.png")
    prompt = question_prompt(model, vocab, normalise(f"Where was {name} born?"))
    assert texts[0].startswith(" ") == name.startswith("Al O")  # bug: what is cut there lost its space
    assert texts == [f"{vocab.decode(prompt)}{answer.text}{MASK}"[: model.block_size]]


@pytest.mark.parametrize("text", ["", "Ж"])
def test_a_text_without_any_character_that_the_model_knows(text: str, vocab: CharVocab) -> None:
    """Bug: a RuntimeError of torch."""
    model = build_model(compose(["model=tiny"]).model, len(vocab)).eval()
    with pytest.raises(InputError, match="has no character that the model knows"):
        attention_weights(model, vocab, text)


@pytest.mark.parametrize("attention", ["vanilla", "synthesizer"])
def test_weights_are_those_of_the_formulas(attention: str, vocab: CharVocab) -> None:
    torch.manual_seed(0)
    model = build_model(compose([f"attention={attention}", "model=tiny"]).model, len(vocab)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = []
    layers: list[Any] = [block.attn for block in model.blocks]
    hooks = [layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for layer in layers]
    read, weights = attention_weights(model, vocab, TEXT)
    for hook in hooks:
        hook.remove()
    assert read == TEXT
    assert weights is not None
    with torch.no_grad():
        for layer_weights, layer, x in zip(weights, layers, inputs, strict=True):
            torch.testing.assert_close(layer_weights, expected(attention, layer, x[0]))


def test_recording_changes_nothing_and_ends(vocab: CharVocab) -> None:
    model = build_model(compose(["model=tiny"]).model, len(vocab)).eval()
    ids = torch.tensor([vocab.encode(TEXT)])
    alone = model(ids)
    with record_attention_weights(model) as recorded:
        assert torch.equal(model(ids), alone)
    assert len(recorded) == model.n_layer
    model(ids)
    assert len(recorded) == model.n_layer


class MeanAttention(torch.nn.Module):
    """Without `ScaledDotProductAttention`."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.n_head = sizes["n_head"]

    def forward(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return self.attention_weights(x)[:, 0] @ x

    def attention_weights(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
        ones = x.new_ones(len(x), self.n_head, x.shape[1], x.shape[1]).tril()
        return ones / ones.sum(-1, keepdim=True)


def test_a_variant_may_provide_its_weights_itself(vocab: CharVocab) -> None:
    model = GPT(len(vocab), 2, 2, 16, 64, dropout=0.0, attention=MeanAttention).eval()
    _, weights = attention_weights(model, vocab, "Ada")
    assert weights is not None
    assert [layer.shape for layer in weights] == [(2, 3, 3)] * 2
    assert torch.equal(weights[1][1, 1], torch.tensor([0.5, 0.5, 0.0]))


def test_picture() -> None:
    """Each cell of the map has the colour of its weight, and the answer's rows have a mark beside them."""
    length, yellow = 40, (253, 231, 37)
    page = attention_picture(
        torch.eye(length).expand(2, length, length), "x" * length, slice(30, 38), "layer 1"
    )
    is_yellow = (page == yellow).all(-1)
    is_yellow[-FOOTER:] = False  # the colour scale
    assert is_yellow.sum() == 2 * length * CELL**2
    top, left = np.argwhere(is_yellow)[0]
    assert tuple(page[top + CELL, left]) == (68, 1, 84)  # below the diagonal: none
    assert tuple(page[top, left + CELL]) == MASKED
    beside = (page[:, left + CELL * length] == ANSWER_COLOR).all(-1)
    beside[:top] = False  # the legend
    assert [*np.flatnonzero(beside)] == [*range(top + 30 * CELL, top + 38 * CELL)]


def test_picture_shows_each_character_beside_its_row_and_above_its_column() -> None:
    """Another character changes the picture there and in the title, and nowhere else."""
    weights = torch.eye(40)[None]
    plain, other = (attention_picture(weights, f"{'x' * 20}{c}{'x' * 19}", slice(0), "") for c in "xo")
    top, left = np.argwhere((plain == (253, 231, 37)).all(-1))[0]
    changed = {*map(tuple, np.argwhere((plain != other).any(-1)))}
    column = {(y, x) for y, x in changed if y < top and 20 <= (x - left) / CELL < 21}
    row = {(y, x) for y, x in changed if x < left and 20 <= (y - top) / CELL < 21}
    assert column
    assert row
    assert column | row == changed


def scale_of(page: np.ndarray) -> np.ndarray:
    """The colours of the bar below the maps, from the lowest weight to the highest."""
    return page[-FOOTER + 10, 4 * MARGIN : 4 * MARGIN + 240]


@pytest.mark.parametrize(
    ("weights", "low", "zero", "rows_sum_to"),
    [
        ([[1.0, 0.0], [0.5, 0.5]], (68, 1, 84), (68, 1, 84), ""),
        ([[1.2, 0.0], [0.6, 0.6]], (33, 102, 172), (247, 247, 247), "1.20"),
        ([[0.4, 0.0], [0.9, -0.5]], (33, 102, 172), (247, 247, 247), "0.40"),
        ([[0.3, 0.0], [0.4, 0.5]], (68, 1, 84), (68, 1, 84), "0.30 ... 0.90"),
    ],
    ids=["softmax", "beyond one", "negative", "below one"],
)
def test_the_scale_says_what_weights_are_and_what_rows_sum_to(
    weights: list[list[float]],
    low: tuple[int, ...],
    zero: tuple[int, ...],
    rows_sum_to: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    monkeypatch.setattr(pictures_module, "_write", lambda draw, at, text, *style: written.append(text))
    page = attention_picture(torch.tensor([weights]), "ab", slice(0), "")
    assert tuple(scale_of(page)[0]) == low
    assert (page == zero).all(-1).any()
    assert [text for text in written if "rows sum to" in text] == [f"rows sum to {rows_sum_to}"] * bool(
        rows_sum_to
    )
    cells = page[:-FOOTER].reshape(-1, 3)
    blue, red = (cells == (33, 102, 172)).all(-1), cells[:, 0] > cells[:, 2] + 40
    assert blue.any() == (min(map(min, weights)) <= -1)
    if low == (33, 102, 172):  # positive weights are red, negative ones blue
        assert red.any()
        bluish = (cells[:, 2] > cells[:, 0].astype(int) + 20).any()
        assert bluish == (min(map(min, weights)) < 0)


@pytest.mark.parametrize("name", options()["attention"])
def test_every_variant_is_drawn(name: str, vocab: CharVocab) -> None:
    """A picture of every layer; the perceiver's latents are numbered, and do not answer."""
    torch.manual_seed(0)
    sizes = compose([f"attention={name}", "model=tiny", "model.n_layer=3", "model.n_head=4"]).model
    model = build_model(sizes, len(vocab)).eval()
    read, weights = attention_weights(model, vocab, TEXT)
    assert weights is not None
    for layer in weights:
        assert layer.shape[1:] == (len(TEXT), len(TEXT))
        assert torch.isfinite(layer).all()
        assert layer.triu(1).abs().max() == 0
    pictures = attention_pictures(model, read, weights)
    marked = [(picture[HEADER:] == ANSWER_COLOR).all(-1).any() for picture in pictures]
    assert marked == [name != "perceiver", name != "perceiver", True]


def test_all_layers_have_one_scale_and_maps_of_pairs_are_named(
    vocab: CharVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(pictures_module, "_write", lambda draw, at, text, *style: written.append(text))
    sizes = compose(["attention=differential", "model=tiny", "model.n_head=4"]).model
    model = build_model(sizes, len(vocab)).eval()
    read, weights = attention_weights(model, vocab, TEXT)
    assert weights is not None
    first, second = weights
    alone = attention_pictures(model, read, [first, first])[0]
    one, two = attention_pictures(model, read, [first, 5 * second])
    assert (scale_of(one) == scale_of(two)).all()
    assert not np.array_equal(one, alone)  # the same weight is paler on a scale to 5
    assert [text for text in written if text.startswith(("head", "pair"))] == ["pair 1", "pair 2"] * 4


def test_maps_of_few_latents(vocab: CharVocab) -> None:
    """The first layer of the perceiver has a row for each latent, the last one a column."""
    torch.manual_seed(0)
    overrides = ["attention=perceiver", "model=tiny", "model.n_layer=3", "model.block.latents=8"]
    model = build_model(compose(overrides).model, len(vocab)).eval()
    read, weights = attention_weights(model, vocab, TEXT)
    assert weights is not None
    latents, length = 8, len(TEXT)
    shapes = [(2, latents, length), (2, latents, latents), (2, length, latents)]
    assert [layer.shape for layer in weights] == shapes
    tall, square, wide = (p.shape[1] / p.shape[0] for p in reversed(attention_pictures(model, read, weights)))
    assert tall < square < wide


def test_a_run_leaves_maps_of_every_validation(configure: Any, tmp_path: Path) -> None:
    from stage import run

    config = configure("pretrain=none", "attention=synthesizer", "trainer.check_val_every_n_epoch=1")
    run(config)
    (folder,) = (tmp_path / "runs").glob("*/finetune")
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    for layer in range(1, config.model.n_layer + 1):
        points = events.Tensors(f"finetune/attention/layer_{layer}")
        assert len(points) == 2
        assert points[0].tensor_proto.string_val[2].startswith(b"\x89PNG")
    note = events.Tensors("finetune/about_val_loss/text_summary")
    assert b"exact match" in note[0].tensor_proto.string_val[0]
