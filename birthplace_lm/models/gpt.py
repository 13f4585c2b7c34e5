"""A character-level GPT whose attention is a plug-in.

Shapes: B batch, T characters, C channels (`n_embd`), H heads, D = C // H, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from birthplace_lm.models.dropout import Dropout
from birthplace_lm.models.kv_cache import KVCache, LayerKVCache

AttentionFactory = Callable[..., nn.Module]


class Block(nn.Module):
    """Pre-LayerNorm transformer block: attention, then an MLP four times as wide, each added to its input."""

    def __init__(self, attention: nn.Module, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.attn = attention
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), Dropout(dropout)
        )

    def forward(self, x: Tensor, cache: LayerKVCache | None = None, at: Tensor | None = None) -> Tensor:
        """(B, T, C) to the same; or to (N, C), the positions where `at` (B, T) is true."""
        x = x + self.attn(self.ln1(x), cache)
        if at is not None:
            x = x[at]
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """Characters in, logits of the next character out.

    Args:
        vocab_size: symbols, PAD and MASK included.
        n_layer, n_head, n_embd: layers, heads and channels; `n_head` divides `n_embd`.
        block_size: the longest sequence.
        dropout: on the embedding and both residual branches; handed to the attention for its weights.
        attention: factory called once per layer with `n_embd`, `n_head`, `block_size`, `dropout`; makes a
            module that maps (B, T, C) and an optional `LayerKVCache` to (B, T, C), causally.
        learned_positions: learn one vector per position and add it to the embedding. Variants that encode
            positions themselves turn it off.

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
        attention: AttentionFactory,
        learned_positions: bool = True,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.n_layer = n_layer
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd)) if learned_positions else None
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                attention(n_embd=n_embd, n_head=n_head, block_size=block_size, dropout=dropout),
                n_embd,
                dropout,
            )
            for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.apply(_initialize)

    def forward(self, ids: Tensor, cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T); or (N, V) for the positions where `at` (B, T) is true.

        With a cache, `ids` are the characters at `cache.positions` and see what the cache holds.

        Raises:
            ValueError: if a sequence, or the room of the cache, is longer than `block_size`.
        """
        length = ids.shape[1] if cache is None else cache.size
        if length > self.block_size:
            raise ValueError(f"{length} characters do not fit into block_size={self.block_size}")
        x = self.tok_emb(ids)  # (B, T, C)
        if self.pos_emb is not None:
            x = x + (self.pos_emb[:, :length] if cache is None else self.pos_emb[0, cache.positions])
        x = self.drop(x)
        for index, block in enumerate(self.blocks):
            wanted = at if index == self.n_layer - 1 else None  # nothing looks at the others any more
            x = block(x, None if cache is None else cache.layers[index], wanted)
        return self.head(self.ln_f(x))

    def read(self, ids: Tensor, shared: int, cache: KVCache, at: Tensor) -> Tensor:
        """`forward(ids, at=at)`, into an empty cache; the first `shared` characters, alike in all rows, once.

        Args:
            at: (B, T), false for all that is shared.
        """
        cache.append(shared, ids.device)
        self(ids[:1, :shared], cache, at[:1, :shared])
        cache.repeat(len(ids))
        cache.append(ids.shape[1] - shared, ids.device)
        logits: Tensor = self(ids[:, shared:], cache, at[:, shared:])
        return logits

    def loss(
        self, inputs: Tensor, targets: Tensor, pad_id: int, reduction: str = "mean", shared: int = 0
    ) -> Tensor:
        """Cross-entropy in nats per character over every target that is not PAD.

        Args:
            shared: so many characters at the beginning of all rows are alike, none of them a target.
        """
        counted = targets != pad_id
        if shared:
            logits = self.read(inputs, shared, KVCache(self.n_layer, inputs.shape[1]), counted)
        else:
            logits = self(inputs, at=counted)
        return F.cross_entropy(logits.float(), targets[counted], reduction=reduction)

    @property
    def num_parameters(self) -> int:
        """How many numbers training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _initialize(module: nn.Module) -> None:
    """Weights N(0, 0.02), biases 0; what a variant keeps as bare parameters it initializes itself."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
