"""FSDP2, `trainer.strategy=fsdp2`: a model whose weights are sharded over several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2. It reads checkpoints itself, shard by shard, and not through a CheckpointIO."""

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load this process's shard of a checkpoint that rank 0 has verified; nothing but plain data.

        Raises:
            CheckpointError: it is missing or damaged, or is no checkpoint of this version of the project.
        """
        if self.is_global_zero:
            checkpoint.load(Path(checkpoint_path))  # the other processes wait for the path
        loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only=True)
        return loaded


def resolve_strategy(name: str, processes: int = 1) -> Any:
    """Turn `trainer.strategy` into what Lightning's Trainer takes.

    With FSDP2 every process holds a shard of each weight, of its gradient and of its optimizer state. A
    checkpoint is one file, the same as one process would save.

    Without FSDP2, `processes=1` gives "auto". `probe_trainer` relies on it: in a notebook Lightning refuses
    the DDP strategy, but a run of several processes must be planned there. Those processes are then started
    outside the notebook, where `processes` is above 1.

    Args:
        name: "auto", "ddp", "ddp_find_unused_parameters_true" or "fsdp2".
        processes: number of training processes.

    Returns:
        A strategy object for "fsdp2", otherwise the name of a strategy.
    """
    if name == "fsdp2":
        return FSDP2Strategy(processes, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return "auto" if processes == 1 else name


def shard(model: GPT, mesh: DeviceMesh) -> None:
    """Shard the weights block by block: a block is gathered only while it is computed."""
    if not is_sharded(model):
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a shard of the weights."""
    return isinstance(model, FSDPModule)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all weights in every process, so that each can call the model as often as it needs."""
    unshard(model)
    try:
        yield
    finally:
        reshard(model)


def unshard(model: nn.Module) -> None:
    """Gather all weights in every process."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def reshard(model: nn.Module) -> None:
    """Keep only this process's shard of the weights again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


class UnshardForValidation(L.Callback):
    """Gathers the weights during validation, where one process decodes for longer than another."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        unshard(pl_module.model)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        reshard(pl_module.model)
