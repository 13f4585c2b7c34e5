"""Seed the global random stream for every batch."""

import hashlib
from typing import Any

import lightning as L
import torch


class SeedEveryBatch(L.Callback):
    """Gives every batch a random stream of its own, so that dropout is the same in a resumed run.

    Args:
        seed: of the run.
        stage: name of the stage.
    """

    def __init__(self, seed: int, stage: str) -> None:
        self.seed = seed
        self.stage = stage

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        key = (self.seed, self.stage, trainer.global_rank, [*batch["batch_id"]])
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big"))
