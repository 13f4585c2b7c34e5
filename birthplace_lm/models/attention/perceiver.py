"""Perceiver: the middle blocks run on a few latent vectors."""

import torch
from torch import Tensor, nn

from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.gpt import Block
from birthplace_lm.models.kv_cache import LayerKVCache
from birthplace_lm.models.sdpa import query_positions, split_heads, visible_keys


class CrossAttention(VanillaAttention):
    """Vanilla attention whose queries may come from another sequence than keys and values."""

    def forward(
        self,
        x: Tensor,
        cache: LayerKVCache | None = None,
        queries: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        source = x if queries is None else queries
        q, k, v = (
            split_heads(linear(inputs), self.head_dim)
            for linear, inputs in ((self.query, source), (self.key, x), (self.value, x))
        )
        return self.output(self.attend_to(q, k, v, cache, mask))


class PerceiverBlock(Block):
    """A block of the perceiver of CS224N 2023. Its attention is `CrossAttention`.

    The first block attends with a learned basis (latents, C) as queries to the characters, which it replaces
    by the latents; its `ln1` normalises both. The last block attends from the embedding of the characters to
    the latents, and continues the residual stream of the embedding. In between are blocks of vanilla
    attention on the latents.

    Latent i sees characters 0 ... i, and the character at t sees latents 0 ... t. So a character at `latents`
    or later reaches only its own prediction. Here latent i has its place at position i of the sequence.

    Args:
        latents: number of latent vectors.

    Raises:
        ValueError: the model has one layer only, or `latents` is not positive.

    Source: CS224N 2023, assignment 5, after Jaegle et al. 2021, arXiv:2103.03206.
    """

    def __init__(
        self,
        attention: nn.Module,
        n_embd: int,
        dropout: float,
        layer: int,
        n_layer: int,
        canon: bool,
        latents: int,
    ) -> None:
        super().__init__(attention, n_embd, dropout, layer, n_layer, canon)
        if n_layer < 2 or latents < 1:
            raise ValueError(f"n_layer={n_layer}, block.latents={latents}: must be 2 or more, and 1 or more")
        self.latents = latents
        self.is_last = layer == n_layer - 1
        self.latent_queries, self.latent_keys = not self.is_last, layer > 0
        self.basis = nn.Parameter(torch.empty(latents, n_embd)) if layer == 0 else None
        if self.basis is not None:
            nn.init.xavier_uniform_(self.basis)

    def add_attention(self, x: Tensor, cache: LayerKVCache | None, embedding: Tensor) -> Tensor:
        normed = self.attention_input(x, cache)
        if self.basis is not None:
            positions = query_positions(x, cache).clamp(max=self.latents - 1)
            stream = self.basis[positions if cache is not None else positions[:, : self.latents]]
            stream = stream.to(x.dtype).expand(len(x), -1, -1)
            mask = visible_keys(x, cache)[..., : stream.shape[1], :]
            return stream + self.attn(normed, cache, self.ln1(stream), mask)
        mask = visible_keys(embedding, cache)
        mask = mask & (torch.arange(mask.shape[-1], device=x.device) < self.latents)
        if cache is None:
            mask = mask[..., : x.shape[1]]
        if self.is_last:
            return embedding + self.attn(normed, cache, embedding, mask)
        return x + self.attn(normed, cache, None, mask[..., : x.shape[1], :])
