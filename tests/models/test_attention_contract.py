"""The contract of attention variants, checked for every yaml in conf/attention/."""

import io
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.models.build import build_model
from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.gpt import GPT, PAD_ID
from birthplace_lm.models.kv_cache import KVCache
from birthplace_lm.models.partial_forward import forward_with_shared_prefix
from birthplace_lm.training.microbatching import loss_sum

NAMES = sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml"))
SETTINGS = {
    "canon": "model.canon=true",
    "mask_pads": "model.mask_pads=true",
    "three_layers": "model.n_layer=3",  # one between the first and the last, which are of their own kind
    "one_kv_head": "model.attention.n_kv_head=1",
    "four_kv_heads": "model.attention.n_kv_head=4",
    "per_head": "model.attention.per_head=true",
}
NAMES += [f"{name}+canon" for name in NAMES]
NAMES += ["vanilla+mask_pads", "synthesizer+mask_pads", "nope+canon+mask_pads", "perceiver+three_layers"]
NAMES += ["gqa+one_kv_head", "gqa+four_kv_heads", "gated+per_head"]
BLOCK, SYMBOLS = 128, 30
EARLIER = torch.ones(BLOCK, BLOCK).triu().bool()  # (character, position)
# Of the variants that do not see everything: which position a character reaches, in a model of two layers.
REACH = {
    "sliding_window": EARLIER & ~EARLIER.triu(1 + 2 * 31),
    "perceiver": EARLIER & (torch.arange(BLOCK) < 64)[:, None] | torch.eye(BLOCK).bool(),
}
CONVOLUTIONS = 4 * 3  # four in two layers, each to 3 positions later

pytestmark = pytest.mark.parametrize("name", NAMES)


@cache
def composed(name: str, dropout: float = 0.0) -> DictConfig:
    attention, *settings = name.split("+")
    overrides = [f"attention={attention}", "model=tiny", "model.n_head=4", f"model.dropout={dropout}"]
    return compose([*overrides, *(SETTINGS[setting] for setting in settings)])


def built(name: str, seed: int = 0, dropout: float = 0.0) -> GPT:
    """A network without parameters that are zero, which could hide an error."""
    torch.manual_seed(seed)
    model = build_model(composed(name, dropout).model, SYMBOLS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def characters(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(2, SYMBOLS, shape, generator=torch.Generator().manual_seed(seed))


def reach(name: str) -> tuple[Tensor, Tensor]:
    """The positions that each character surely reaches, and those that it reaches at most, (128, 128)."""
    attention, *settings = name.split("+")
    surely = REACH.get(attention, EARLIER)
    if "canon" not in settings:
        return surely, surely
    later = [F.pad(surely, (by, 0))[:, :BLOCK] for by in range(CONVOLUTIONS + 1)]
    return surely, torch.stack(later).any(0)


@torch.no_grad()
def decoded(model: GPT, ids: Tensor, prefill: list[int], pieces: list[int]) -> Tensor:
    """Logits of `ids` read with a cache: prompts of these lengths, padded, then pieces.

    Where a row ends before the longest does, its logits stay zero.
    """
    rows, positions = torch.arange(len(ids))[:, None], torch.arange(max(prefill)).expand(len(ids), -1)
    lengths = torch.tensor(prefill)[:, None]
    cache = KVCache(model.n_layer, BLOCK)
    cache.set_positions(positions, BLOCK)
    logits = torch.zeros(*ids.shape, SYMBOLS)
    prompt = ids[:, : max(prefill)].where(positions < lengths, 0)
    logits[:, : max(prefill)] = model(prompt, cache)
    for piece in pieces:
        positions = lengths + torch.arange(piece)
        cache.set_positions(positions, BLOCK)
        logits[rows, positions] = model(ids[rows, positions], cache).float()
        lengths = lengths + piece
    return logits * (torch.arange(ids.shape[1]) < lengths)[..., None]


def test_every_length_up_to_the_block_keeps_its_shape(name: str, amount: Any) -> None:
    few = [*range(1, 9), *range(9, BLOCK, 17), BLOCK - 1, BLOCK]
    factory = instantiate(composed(name).model.attention)
    layer = factory(n_embd=32, n_head=4, block_size=BLOCK, dropout=0.0).eval()
    model = built(name)
    with torch.no_grad():
        for length in amount(few, range(1, BLOCK + 1)):
            x = torch.randn(2, length, 32)
            assert layer(x).shape == x.shape
        for length in (1, 2, BLOCK - 1, BLOCK):
            assert model(characters(3, length)).shape == (3, length, SYMBOLS)


@torch.no_grad()
def test_a_character_changes_only_what_follows(name: str) -> None:
    model, ids = built(name), characters(1, BLOCK)
    changed = ids.repeat(BLOCK, 1)
    changed.diagonal().copy_((changed.diagonal() - 2 + 7) % (SYMBOLS - 2) + 2)  # row t differs at t
    difference = (model(changed) - model(ids)).abs().amax(dim=2)  # (t, position)
    surely, at_most = reach(name)
    assert difference[~at_most].max() < 1e-5
    assert difference[surely].min() > 1e-4


def test_gradients_reach_the_same_characters(name: str) -> None:
    model, seen = built(name), []
    model.tok_emb.register_forward_hook(lambda _module, _input, output: seen.append(output))
    logits = model(characters(1, BLOCK).repeat(BLOCK, 1))
    logits.diagonal(dim1=0, dim2=1).square().sum().backward(inputs=seen)  # row t: logits at position t
    gradient = seen[0].grad.abs().amax(dim=2)
    surely, at_most = reach(name)
    assert gradient.T[~at_most].max() == 0
    assert gradient.T[surely].min() > 0


def test_every_parameter_learns(name: str) -> None:
    model, ids = built(name), characters(4, BLOCK)
    model.loss(ids[:, :-1], ids[:, 1:], pad_id=0).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


def test_state_survives_a_file(name: str) -> None:
    model, other, ids = built(name), built(name, seed=2), characters(2, 50)
    assert not torch.allclose(model(ids), other(ids))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(ids), other(ids))


def test_dropout_only_in_training(name: str) -> None:
    model, ids = built(name, dropout=0.5), characters(2, 20)
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(model(ids), built(name, dropout=0.0)(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


@pytest.mark.parametrize(
    ("prefill", "pieces"),
    [
        ([BLOCK], []),
        ([1], [1] * (BLOCK - 1)),
        ([64, 1, 90, 17], [1] * 38),
        ([30, 5], [1, 40, 1, 7, 49]),
    ],
    ids=["in one piece", "one by one", "rows of different lengths", "in pieces"],
)
def test_cached_decoding_equals_the_full_forward(name: str, prefill: list[int], pieces: list[int]) -> None:
    model, ids = built(name), characters(len(prefill), BLOCK)
    read = torch.arange(BLOCK) < torch.tensor(prefill)[:, None] + sum(pieces)
    with torch.no_grad():
        full = model(ids) * read[..., None]
    assert read.any(dim=0).all()  # up to the last position of the block
    torch.testing.assert_close(decoded(model, ids, prefill, pieces), full, atol=1e-5, rtol=0)


@torch.no_grad()
def test_selected_rows_of_a_cache_decode_alone(name: str) -> None:
    model, ids = built(name), characters(4, 40)
    ids[torch.arange(40) < torch.arange(4)[:, None] * 3] = PAD_ID  # 0, 3, 6, 9 in front
    cache = KVCache(model.n_layer, 40)
    cache.set_positions(torch.arange(30).expand(4, -1), 40)
    model(ids[:, :30], cache)
    full = model(ids)
    for position, rows in ((30, [3, 0, 1]), (31, [2, 0]), (32, [1])):
        cache.select_rows(torch.tensor(rows))
        ids, full = ids[rows], full[rows]
        cache.set_positions(torch.full((len(rows), 1), position), 40)
        logits = model(ids[:, position : position + 1], cache)[:, 0]
        torch.testing.assert_close(logits, full[:, position], atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix_length", [1, 10])
def test_a_shared_prefix_is_computed_once(name: str, prefix_length: int) -> None:
    """Loss and every gradient equal those of computing the prefix in every row."""
    model, ids = built(name).double(), characters(5, 30)
    ids[:, :prefix_length] = ids[0, :prefix_length]
    targets = ids[:, 1:].clone()
    targets[:, :prefix_length] = 0
    plain = model.loss(ids[:, :-1], targets, pad_id=0, reduction="sum")
    expected = torch.autograd.grad(plain, list(model.parameters()))
    loss = loss_sum(model, ids[:, :-1], targets, 0, prefix_length)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradients, expected, atol=1e-9, rtol=1e-6)


@torch.no_grad()
def test_rows_may_share_no_prefix(name: str) -> None:
    """Bug: the prefix was computed even if it had no character, and a variant that divided by it failed."""
    model, ids, select = built(name), characters(3, 12), torch.ones(3, 12).bool()
    logits = forward_with_shared_prefix(model, ids, 0, select, KVCache(model.n_layer, 12))
    torch.testing.assert_close(logits, model(ids)[select], atol=1e-5, rtol=0)


def test_a_shared_prefix_keeps_attention_dropout(name: str) -> None:
    model, ids = built(name, dropout=0.5).train(), characters(5, 30)
    ids[:, :10] = ids[0, :10]
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0  # leaves the dropout of the attention weights, if the variant has any

    def losses(prefix_length: int) -> set[float]:
        targets = ids[:, 1:].where(torch.arange(29) >= 10, 0)
        return {loss_sum(model, ids[:, :-1], targets, 0, prefix_length).item() for _ in range(4)}

    assert len(losses(10)) == len(losses(0))


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16-true", "bf16-mixed"])
def test_bfloat16(name: str, autocast: bool) -> None:
    model, ids = built(name), characters(2, BLOCK)
    with torch.no_grad():
        exact = model(ids)
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(ids)
        model.loss(ids[:, :-1], ids[:, 1:], pad_id=0).backward()
        cached = decoded(model, ids[:, :30], [20, 10], [1] * 10)
    assert logits.dtype == (torch.float32 if autocast else torch.bfloat16)  # of evaluation
    near = 0.1 * exact.std().item()  # 8 bits of mantissa, a few layers
    torch.testing.assert_close(logits.float(), exact, atol=5 * near, rtol=0.05)
    assert (logits.float() - exact).square().mean().sqrt() < near
    read = torch.arange(30) < torch.tensor([[30], [20]])
    torch.testing.assert_close(cached, logits[:, :30].float() * read[..., None], atol=5 * near, rtol=0.05)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
