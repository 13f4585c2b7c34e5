"""Key/value cache for batched incremental decoding."""

import torch
from torch import Tensor
from torch.nn import functional as F


class LayerKVCache:
    """What one attention layer stores, by name, for up to `size` positions.

    Rows of a batch may stand at different positions: every row writes at its own positions and attends only
    to what it has written up to there, so prompts of different lengths decode together.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffers: dict[str, Tensor] = {}
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self.mask = torch.empty(0, 1, 0, 0, dtype=torch.bool)  # (B, 1, T, seen), or (1, 1, T, seen)
        self.contiguous = False  # all rows continue right after what is stored
        self.hidden: Tensor | None = None  # (B, T), the characters at `positions` that others do not see

    def update(self, name: str, values: Tensor) -> Tensor:
        """Write (B, H, T, D) at the current positions; return all that is stored, (B, H, seen, D)."""
        batch, heads, _, width = values.shape
        buffer = self.buffers.get(name)
        if self.contiguous:
            buffer = values if buffer is None else torch.cat((buffer, values.to(buffer.dtype)), 2)
            self.buffers[name] = buffer
            return buffer
        if buffer is None:
            buffer = values.new_zeros(batch, heads, self.size, width)
        elif buffer.shape[2] < self.size:
            buffer = F.pad(buffer, (0, 0, 0, self.size - buffer.shape[2]))
        elif buffer.stride(0) == 0:  # by `expand_batch`: all rows are the same memory
            buffer = buffer.clone()
        self.buffers[name] = buffer
        rows = torch.arange(batch, device=values.device)[:, None]
        buffer[rows, :, self.positions] = values.transpose(1, 2).to(buffer.dtype)
        return buffer[:, :, : self.mask.shape[-1]]


class KVCache:
    """One `LayerKVCache` per layer; all of them move together.

    Args:
        n_layer: layers of the model.
        size: the most positions that a row will have, prompt and answer together.
    """

    def __init__(self, n_layer: int, size: int) -> None:
        self.size = size
        self.layers = [LayerKVCache(size) for _ in range(n_layer)]
        self._characters = LayerKVCache(size)  # which of them are hidden
        self._parts = [*self.layers, self._characters]
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self._length: int | None = 0  # reached by `advance`

    def advance(self, length: int, device: torch.device) -> None:
        """Place the next `length` characters of all rows right after those placed so far.

        Raises:
            ValueError: `set_positions` came before, after which rows may stand at different positions.
        """
        if self._length is None:
            raise ValueError("advance() after set_positions(): give the positions of each row")
        start, self._length = self._length, self._length + length
        positions = torch.arange(start, self._length, device=device)[None]
        self._place(positions, self._length, contiguous=True)

    def set_positions(self, positions: Tensor, seen: int) -> None:
        """Place the next characters of each row at (B, T) positions, each below `seen`."""
        self._length = None
        self._place(positions, seen, contiguous=False)

    def _place(self, positions: Tensor, seen: int, contiguous: bool) -> None:
        self.positions = positions
        mask = torch.arange(seen, device=positions.device) <= positions[:, None, :, None]
        for part in self._parts:
            part.positions, part.mask, part.contiguous = positions, mask, contiguous

    def hide(self, hidden: Tensor) -> None:
        """Hide some of the characters just placed, (B, T), from all but themselves, now and later."""
        stored = self._characters.update("hidden", hidden[:, None, :, None])[:, 0, :, 0]  # (B, S)
        keys = torch.arange(stored.shape[1], device=stored.device)
        own = keys == self.positions[:, None, :, None]
        mask = self._characters.mask & (own | ~stored[:, None, None])
        for layer in self.layers:
            layer.mask, layer.hidden = mask, hidden

    def expand_batch(self, batch: int) -> None:
        """Turn the cache of one row into that of `batch` equal rows."""
        for part in self._parts:
            part.buffers = {name: buffer.expand(batch, -1, -1, -1) for name, buffer in part.buffers.items()}

    def select_rows(self, rows: Tensor) -> None:
        """Keep the rows of the batch at these indices, in this order, and drop the others."""
        for part in self._parts:
            part.buffers = {name: buffer[rows] for name, buffer in part.buffers.items()}
