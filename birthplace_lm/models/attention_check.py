"""Check a user's attention, mostly within a second, before a run starts.

A network also trains with an attention that looks ahead or that handles the cache wrongly, and its figures
are wrong without an error.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT, PAD_ID, Block
from birthplace_lm.models.kv_cache import KVCache
from birthplace_lm.models.partial_forward import forward_with_shared_prefix

ROWS, LENGTH, SYMBOLS = 3, 128, 24
TOLERANCE = 1e-3  # of the standard deviation of the logits; rounding errors are a thousandth of it
WITH_CACHE = "logits with a cache are not those without one"
NOISE = 0.02  # is added to the initial weights: a factor that starts at zero would hide an error


class ContractError(ValueError):
    """An attention does not do what training and decoding rely on."""


def check_attention(sizes: Mapping[str, Any]) -> None:
    """Check that a position depends on no later one, and that logits and gradients are the same with a cache.

    With `mask_pads`, also that no logit of a character depends on the embedding of PAD.

    Args:
        sizes: as in `build_model`.

    Raises:
        ContractError: what is wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build({**sizes, "mask_pads": False})  # which would pass a cache in every forward pass
        ids = torch.randint(SYMBOLS, (ROWS, min(LENGTH, model.block_size)))
        _check_shape(model)
        _check_causal(model, ids)
        _check_decoding(model, ids)
        _check_shared_prefix(model, ids)
        if sizes.get("mask_pads"):
            _check_pads(_build(sizes), ids)


def _build(sizes: Mapping[str, Any]) -> GPT:
    model = build_model(sizes, SYMBOLS).eval()  # all layers: an attention may know its own
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return model


@torch.no_grad()
def _check_shape(model: GPT) -> None:
    """What the attention of an ordinary block returns; blocks of another kind may use theirs differently."""
    for block in (block for block in model.blocks if type(block) is Block):
        x = torch.randn(ROWS, 5, model.tok_emb.embedding_dim)
        y = block.attn(x, None)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = f"a tensor of {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ContractError(f"forward returns {got}; must return a tensor of {tuple(x.shape)}, as x is")


@torch.no_grad()
def _check_causal(model: GPT, ids: Tensor) -> None:
    for cut in (ids.shape[1] // 2, ids.shape[1] * 5 // 9):  # one of them is within a window or a chunk
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % SYMBOLS
        _compare(
            model(changed)[:, :cut], model(ids)[:, :cut], "later characters change the logits of a position"
        )


@torch.no_grad()
def _check_decoding(model: GPT, ids: Tensor) -> None:
    """Prompts of different lengths, then one character at a time, as answers are decoded."""
    full, length = model(ids), ids.shape[1]
    prompts = torch.tensor([length // 2, 1, length - 2])[:, None]
    cache = KVCache(model.n_layer, length)
    positions = torch.arange(int(prompts.max())).expand(ROWS, -1)
    cache.set_positions(positions, length)
    rows = torch.arange(ROWS)[:, None]
    decoded = torch.where((positions < prompts)[..., None], model(ids[rows, positions], cache), 0.0)
    _compare(decoded, full[rows, positions] * (positions < prompts)[..., None], WITH_CACHE)
    for step in range(2):
        cache.set_positions(prompts + step, length)
        _compare(model(ids[rows, prompts + step], cache), full[rows, prompts + step], WITH_CACHE)


def _check_shared_prefix(model: GPT, ids: Tensor) -> None:
    """A prefix that all rows share is computed once and cached; gradients flow through the cache."""
    prefix = ids.shape[1] // 2
    ids = torch.cat((ids[:1, :prefix].expand(ROWS, -1), ids[:, prefix:]), 1)
    select = (torch.arange(ids.shape[1]) >= prefix).expand(ROWS, -1)
    expected = model(ids, select=select)
    cached = forward_with_shared_prefix(model, ids, prefix, select, KVCache(model.n_layer, ids.shape[1]))
    _compare(cached, expected, WITH_CACHE)
    weights = torch.randn_like(expected)
    _compare(
        _gradients(model, cached, weights),
        _gradients(model, expected, weights),
        "gradients with a cache are not those without one",
    )


@torch.no_grad()
def _check_pads(model: GPT, ids: Tensor) -> None:
    ids = ids.clone()
    ids[0, : ids.shape[1] // 2] = PAD_ID
    expected, text = model(ids), ids != PAD_ID
    model.tok_emb.weight[PAD_ID].normal_()
    _compare(
        model(ids)[text], expected[text], "mask_pads=true, but PADs change the logits of other characters"
    )


def _gradients(model: GPT, logits: Tensor, weights: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logits, parameters, weights, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _compare(result: Tensor, expected: Tensor, what: str) -> None:
    if not torch.isfinite(expected).all():
        raise ContractError("its results are not finite")
    difference, scale = (result - expected).abs().max().item(), expected.std().item()
    if not difference <= TOLERANCE * scale:
        raise ContractError(f"{what} (difference {difference:.1g}, standard deviation {scale:.1g})")
