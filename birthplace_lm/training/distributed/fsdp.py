"""A model that is spread over several processes: FSDP2, `trainer.strategy=fsdp2`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from birthplace_lm.models.gpt import GPT


class FSDP2Strategy(ModelParallelStrategy):
    """Every process holds a part of each weight, its gradient and its optimizer state.

    A checkpoint is one file, as from one process: it can be asked, exported and started from alike.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def resolve_strategy(name: str) -> Any:
    """`trainer.strategy` as Lightning's Trainer takes it."""
    return FSDP2Strategy() if name == "fsdp2" else name


def shard(model: GPT, mesh: DeviceMesh) -> None:
    """Spread the weights, block by block: a block is whole only while it is computed."""
    if not is_sharded(model):
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has but a part of the weights."""
    return isinstance(model, FSDPModule)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Have all the weights in every process, to call the model as often as each needs to."""
    unshard(model)
    try:
        yield
    finally:
        reshard(model)


def unshard(model: nn.Module) -> None:
    """Begin what `unsharded` does."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def reshard(model: nn.Module) -> None:
    """End what `unsharded` does."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
