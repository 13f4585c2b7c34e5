"""What attention keeps of the characters already read while an answer is decoded."""

import torch
from torch import Tensor
from torch.nn import functional as F


class LayerKVCache:
    """The values one attention layer wants to see again, by name, for up to `size` positions.

    Rows of a batch may stand at different positions: every row writes at its own and sees only what it has
    written up to there, so prompts of different lengths decode together.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffers: dict[str, Tensor] = {}
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self.mask = torch.empty(0, 1, 0, 0, dtype=torch.bool)  # (B, 1, T, seen), or (1, 1, T, seen)
        self.appends = False  # all rows go on right after what is held

    def store(self, name: str, values: Tensor) -> Tensor:
        """Write (B, H, T, D) at the current positions; return what was stored so far, (B, H, seen, D)."""
        batch, heads, _, width = values.shape
        held = self.buffers.get(name)
        if self.appends:
            self.buffers[name] = values if held is None else torch.cat((held, values.to(held.dtype)), 2)
            return self.buffers[name]
        if held is None:
            held = values.new_zeros(batch, heads, self.size, width)
        elif held.shape[2] < self.size:
            held = F.pad(held, (0, 0, 0, self.size - held.shape[2]))
        self.buffers[name] = held
        rows = torch.arange(batch, device=values.device)[:, None]
        held[rows, :, self.positions] = values.transpose(1, 2).to(held.dtype)
        return held[:, :, : self.mask.shape[-1]]


class KVCache:
    """One `LayerKVCache` per layer, moved along together.

    Args:
        n_layer: layers of the model.
        size: the most positions a row will have, prompt and answer together.
    """

    def __init__(self, n_layer: int, size: int) -> None:
        self.size = size
        self.layers = [LayerKVCache(size) for _ in range(n_layer)]
        self.positions = torch.empty(0, 0, dtype=torch.long)
        self._appended = 0

    def append(self, length: int, device: torch.device) -> None:
        """The next `length` characters of all rows stand right after those appended so far."""
        first, self._appended = self._appended, self._appended + length
        self._point(torch.arange(first, self._appended, device=device)[None], self._appended, appends=True)

    def move_to(self, positions: Tensor, seen: int) -> None:
        """Say where the next characters of each row stand: (B, T) positions, each below `seen`."""
        self._point(positions, seen, appends=False)

    def _point(self, positions: Tensor, seen: int, appends: bool) -> None:
        self.positions = positions
        mask = torch.arange(seen, device=positions.device) <= positions[:, None, :, None]
        for layer in self.layers:
            layer.positions, layer.mask, layer.appends = positions, mask, appends

    def repeat(self, batch: int) -> None:
        """Make a cache of one row one of so many alike."""
        for layer in self.layers:
            layer.buffers = {name: held.expand(batch, -1, -1, -1) for name, held in layer.buffers.items()}

    def keep(self, rows: Tensor) -> None:
        """Drop every row of the batch that `rows`, a tensor of indices, does not name."""
        for layer in self.layers:
            layer.buffers = {name: buffer[rows] for name, buffer in layer.buffers.items()}
