"""A character-level GPT with pluggable attention.

Shapes: B batch, T characters, C channels (`n_embd`), H heads, D = C // H, V vocabulary.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.convolution import CausalConvolution
from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import KVCache, LayerKVCache

Factory = Callable[..., nn.Module]
PAD_ID = 0  # of every vocabulary


class Block(nn.Module):
    """Pre-LayerNorm transformer block: attention, then an MLP four times as wide, both residual.

    Args:
        attention: maps (B, T, C) and an optional `LayerKVCache` to (B, T, C).
        n_embd: channels C.
        dropout: of the MLP's result.
        layer, n_layer: number of this block, from 0, and of all; for blocks that are not all alike.
        canon: short causal convolutions before the attention and before the MLP.

    Attributes:
        latent_queries, latent_keys: whether the attention's queries and keys are latent vectors instead of
            characters.
    """

    latent_queries = latent_keys = False

    def __init__(
        self,
        attention: nn.Module,
        n_embd: int,
        dropout: float,
        layer: int = 0,
        n_layer: int = 1,
        canon: bool = False,
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.attn = attention
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), Dropout(dropout)
        )
        self.canon_attn = CausalConvolution(n_embd, "canon_attn") if canon else None
        self.canon_mlp = CausalConvolution(n_embd, "canon_mlp") if canon else None

    def forward(
        self, x: Tensor, cache: LayerKVCache | None, embedding: Tensor, select: Tensor | None = None
    ) -> Tensor:
        """(B, T, C), or (N, C) for the N positions where `select` (B, T) is True.

        Args:
            x: what the block before returned.
            embedding: what the first block got.
        """
        x = self.add_attention(x, cache, embedding)
        if select is not None and self.canon_mlp is None:
            return self.add_mlp(x[select], cache)  # the MLP sees one position at a time
        x = self.add_mlp(x, cache)
        return x if select is None else x[select]

    def add_attention(self, x: Tensor, cache: LayerKVCache | None, embedding: Tensor) -> Tensor:
        return x + self.attn(self.attention_input(x, cache), cache)

    def attention_input(self, x: Tensor, cache: LayerKVCache | None) -> Tensor:
        h = self.ln1(x)
        return h if self.canon_attn is None else self.canon_attn(h, cache)

    def add_mlp(self, x: Tensor, cache: LayerKVCache | None) -> Tensor:
        h = self.ln2(x)
        return x + self.mlp(h if self.canon_mlp is None else self.canon_mlp(h, cache))


class Head(nn.Linear):
    """Logits (..., V) of states (..., C), without a bias.

    In evaluation they are float32 under autocast, too: bfloat16 has three digits, and likely answers would
    have equal logits.
    """

    def __init__(self, n_embd: int, vocab_size: int) -> None:
        super().__init__(n_embd, vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class GPT(nn.Module):
    """Maps character ids to logits of the next character.

    Args:
        vocab_size: number of symbols, PAD and MASK included.
        n_layer, n_head, n_embd: layers, heads and channels; `n_head` divides `n_embd`.
        block_size: length of the longest sequence.
        dropout: on the embedding and both residual branches; also passed to the attention factory.
        attention: factory called once per layer with `n_embd`, `n_head`, `block_size`, `dropout`, and with
            `layer`, the number of the layer from 0, if it has such an argument. It returns a causal module
            that maps (B, T, C) and an optional `LayerKVCache` to (B, T, C).
        learned_positions: add a learned vector per position to the embedding. Turn it off for variants that
            encode positions themselves.
        canon: short causal convolutions before the attention and the MLP of every block.
        mask_pads: hide PADs from attention and convolutions. The course's code reads them as characters.
        block: factory of blocks, with the arguments of `Block`, for variants that are more than an attention.

    Raises:
        ValueError: the attention is no module, or `mask_pads` meets blocks with latent vectors.

    Source: minGPT as used in Stanford CS224N 2021, assignment 5; parameter names are the course's.
    """

    def __init__(
        self,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        block_size: int,
        dropout: float,
        attention: Factory,
        learned_positions: bool = True,
        canon: bool = False,
        mask_pads: bool = False,
        block: Factory | None = None,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.n_layer = n_layer
        self.mask_pads = mask_pads
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd)) if learned_positions else None
        self.drop = Dropout(dropout)
        takes_layer = "layer" in inspect.signature(attention).parameters
        sizes = {"n_embd": n_embd, "n_head": n_head, "block_size": block_size, "dropout": dropout}
        self.blocks = nn.ModuleList()
        for layer in range(n_layer):
            made = attention(**sizes, **({"layer": layer} if takes_layer else {}))
            if not isinstance(made, nn.Module):
                raise ValueError(f"attention: makes a {type(made).__name__}; must make a torch.nn.Module")
            self.blocks.append(
                (block or Block)(
                    attention=made,
                    n_embd=n_embd,
                    dropout=dropout,
                    layer=layer,
                    n_layer=n_layer,
                    canon=canon,
                )
            )
        if mask_pads and any(block.latent_keys for block in self.blocks):
            raise ValueError("mask_pads=true: must be false with latent vectors, which are no characters")
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = Head(n_embd, vocab_size)
        self.apply(_initialize)

    def forward(self, ids: Tensor, cache: KVCache | None = None, select: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T).

        Args:
            cache: `ids` are the characters at its `positions`; they attend to what it holds.
            select: (B, T) of bool, the N positions whose logits are needed. The result is then (N, V), and
                the last MLP and the head leave out the others.

        Raises:
            ValueError: the sequence, or the cache, is longer than `block_size`.
        """
        if self.mask_pads:
            if cache is None:
                cache = KVCache(self.n_layer, ids.shape[1])
                cache.advance(ids.shape[1], ids.device)
            cache.hide(ids == PAD_ID)
        x = embedding = self.embed(ids, cache)
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x = block(x, layer, embedding, select if index == self.n_layer - 1 else None)
        return self.head(self.ln_f(x))

    def embed(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token plus position embedding (B, T, C), as the first block takes it."""
        length = ids.shape[1] if cache is None else cache.size
        if length > self.block_size:
            raise ValueError(f"{length} characters do not fit into block_size={self.block_size}")
        x = self.tok_emb(ids)
        if self.pos_emb is not None:
            x = x + (self.pos_emb[:, :length] if cache is None else self.pos_emb[0, cache.positions])
        return self.drop(x)

    def loss(self, inputs: Tensor, targets: Tensor, pad_id: int, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats per character over every target that is not PAD."""
        logits = self(inputs).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=pad_id, reduction=reduction)

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def num_table_parameters(self) -> int:
        """Those of the embeddings of characters and positions, and of the head."""
        tables = (self.tok_emb.weight, self.pos_emb, self.head.weight)
        return sum(table.numel() for table in tables if table is not None and table.requires_grad)


def _initialize(module: nn.Module) -> None:
    """Weights N(0, 0.02), biases 0. Attention variants initialize their bare `nn.Parameter`s themselves."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
