"""The GPT against the numbers of the course and a second implementation with nothing fused in it."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from birthplace_lm.config.compose import compose
from birthplace_lm.models.attention.synthesizer import SynthesizerAttention
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.build import build_model
from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.kv_cache import KVCache

SYMBOLS, HEADS, BLOCK = 11, 4, 16
ATTENTIONS = {"vanilla": VanillaAttention, "synthesizer": SynthesizerAttention}
both = pytest.mark.parametrize("name", ATTENTIONS)


def small(name: str, **sizes: Any) -> GPT:
    torch.manual_seed(0)
    defaults = {"vocab_size": SYMBOLS, "n_layer": 2, "n_head": HEADS, "n_embd": 16, "block_size": BLOCK}
    return GPT(**{**defaults, "dropout": 0.0, **sizes}, attention=ATTENTIONS[name])


def course_model(name: str) -> GPT:
    torch.manual_seed(0)
    return build_model(compose([f"attention={name}", "model=gpt_3m"]).model, vocab_size=256)


def plain_logits(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Section 3 of the course's system, one head at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = centred.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        length, depth = x.shape[1], x.shape[2] // HEADS
        outputs = []
        for head in range(HEADS):
            part = slice(head * depth, (head + 1) * depth)
            if f"{name}.query.weight" in w:
                q, k = linear(x, f"{name}.query")[..., part], linear(x, f"{name}.key")[..., part]
                scores = q @ k.transpose(1, 2) / math.sqrt(depth)
            else:
                hidden = linear(x, f"{name}.w1").clamp(min=0)[..., part]
                scores = hidden @ w[f"{name}.w2"][:, :length] + w[f"{name}.b2"][:length]
            weights = scores.exp() * torch.ones(length, length, dtype=x.dtype).tril()
            weights = weights / weights.sum(-1, keepdim=True)
            outputs.append(weights @ linear(x, f"{name}.value")[..., part])
        return linear(torch.cat(outputs, dim=-1), f"{name}.proj")

    x = w["tok_emb.weight"][ids] + w["pos_emb"][:, : ids.shape[1]]
    for layer in range(2):
        block = f"blocks.{layer}"
        x = x + attention(norm(x, f"{block}.ln1"), f"{block}.attn")
        hidden = linear(norm(x, f"{block}.ln2"), f"{block}.mlp.0")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{block}.mlp.2")
    return norm(x, "ln_f") @ w["head.weight"].T


@both
@pytest.mark.parametrize("length", [1, 7, BLOCK - 1])
def test_agrees_with_a_plain_implementation(name: str, length: int) -> None:
    model = small(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids, targets = torch.randint(SYMBOLS, (2, 3, length))
    weights = {key: value.detach().double().requires_grad_() for key, value in model.named_parameters()}
    expected = plain_logits(weights, ids)
    logits = model(ids)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)

    picked = expected.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    loss = -picked[targets != 3].mean()
    loss.backward()
    got = model.loss(ids, targets, pad_id=3)
    got.backward()
    torch.testing.assert_close(got.double(), loss, atol=1e-5, rtol=0)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), weights[key].grad, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(("name", "count"), [("vanilla", 3_323_392), ("synthesizer", 3_076_988)])
def test_as_many_parameters_as_the_course(name: str, count: int) -> None:
    model = course_model(name)
    assert model.num_parameters == sum(p.numel() for p in model.parameters()) == count


def test_without_position_table() -> None:
    model = small("vanilla", learned_positions=False)
    assert small("vanilla").num_parameters - model.num_parameters == BLOCK * 16
    same = torch.full((1, BLOCK), 5)  # nothing tells one position from the next
    torch.testing.assert_close(model(same), model(same[:, :1]).expand(-1, BLOCK, -1), atol=1e-6, rtol=0)


@both
def test_initialization(name: str) -> None:
    model = course_model(name)
    for key, p in model.named_parameters():
        if key.endswith("attn.w2"):
            assert -0.001 <= p.min() < -0.00099, key
            assert 0.00099 < p.max() <= 0.001, key
        elif key.endswith(("bias", "b2")) or key == "pos_emb":
            assert not p.any(), key
        elif ".ln" in key or key.startswith("ln_f"):
            assert (p == 1).all(), key
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.02), key
            assert abs(p.mean().item()) < 0.0005, key
            assert p.abs().max() > 0.06, key  # normal, not uniform


@both
def test_too_long_a_sequence_is_refused(name: str) -> None:
    model, ids = small(name), torch.zeros(1, BLOCK + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="17 characters do not fit into block_size=16"):
        model(ids)
    cache = KVCache(model.n_layer, BLOCK + 1)
    cache.set_positions(torch.tensor([[BLOCK]]), BLOCK + 1)
    with pytest.raises(ValueError, match="17 characters"):
        model(ids[:, :1], cache)
    assert model(ids[:, 1:]).shape == (1, BLOCK, SYMBOLS)


@both
def test_loss_counts_every_target_but_pad(name: str) -> None:
    model, pad = small(name), 0
    ids, targets = torch.randint(1, SYMBOLS, (2, 2, 6))
    every = -model(ids).log_softmax(-1).gather(2, targets[..., None])[..., 0]
    loss = partial(model.loss, ids, pad_id=pad)
    torch.testing.assert_close(loss(targets), every.mean())
    targets[0, 2:], targets[1, 0] = pad, pad
    counted = every[targets != pad]
    assert len(counted) == 7
    torch.testing.assert_close(loss(targets), counted.mean())
    torch.testing.assert_close(loss(targets, reduction="sum"), counted.sum())
    assert loss(torch.zeros_like(targets), reduction="sum") == 0


@both
def test_dropout_is_where_the_course_has_it(name: str) -> None:
    model = small(name, dropout=0.5)
    used: list[str] = []
    for key, module in model.named_modules():
        if isinstance(module, Dropout) and module.p == 0.5:
            module.register_forward_hook(lambda *_, key=key: used.append(key))
    model(torch.zeros(1, 5, dtype=torch.long))
    assert used == ["drop", *(f"blocks.{i}.{key}" for i in range(2) for key in ("attn.resid_drop", "mlp.3"))]
    layer: Any = model.blocks[0].attn
    x = torch.randn(1, 5, 16)
    layer.resid_drop = nn.Identity()  # what is left is on the attention weights
    assert not torch.allclose(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("by_positions", [False, True])
def test_rows_of_an_expanded_cache_are_their_own(by_positions: bool) -> None:
    """Bug: all rows wrote into the memory of the first."""
    cache = KVCache(1, 3)
    if by_positions:
        cache.set_positions(torch.arange(2)[None], 2)
    else:
        cache.advance(2, torch.device("cpu"))
    (layer,) = cache.layers
    layer.update("key", torch.ones(1, 1, 2, 1))
    cache.expand_batch(2)
    cache.set_positions(torch.full((2, 1), 2), 3)
    stored = layer.update("key", torch.tensor([5.0, 7.0]).view(2, 1, 1, 1))
    assert stored[:, 0, :, 0].tolist() == [[1, 1, 5], [1, 1, 7]]
    with pytest.raises(ValueError, match=r"advance\(\) after set_positions\(\)"):
        cache.advance(1, torch.device("cpu"))
