"""A source of rows that needs a lock, in a module that a data worker can import."""

import threading

import torch

from birthplace_lm.data.sequences import PieceTable
from birthplace_lm.data.sources import LeftPadded

LOCK = threading.Lock()


class Locked(LeftPadded):
    """Waits for a lock that another thread may hold."""

    def rows(self, generator: torch.Generator) -> PieceTable:
        with LOCK:
            return super().rows(generator)
