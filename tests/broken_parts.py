"""Parts of a user that break their promise, as `plugins=[broken_parts]` allows them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from birthplace_lm.data.batch_datamodule import BatchDataModule
from birthplace_lm.data.masking.spans import RandomSpans, Spans
from birthplace_lm.errors import CheckpointError


class WithoutSample:
    def __init__(self, documents: Any, titles: Any, people: Any, places: Any, block_size: int) -> None: ...


class SamplesNothing(RandomSpans):
    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Any:
        return None


class SamplesAList(RandomSpans):
    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Any:
        return [0, 0, 1, 2, 3]


class WithoutMaskIndex(RandomSpans):
    def sample(self, generator: torch.Generator) -> Any:  # type: ignore[override]
        return super().sample(generator)


class SamplesTenDocuments(RandomSpans):
    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        return Spans(*(edge[:10] for edge in super().sample(generator)))


class SamplesFloats(RandomSpans):
    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        return Spans(*(edge.float() for edge in super().sample(generator)))


class SamplesUnlikeBefore(RandomSpans):
    def sample(self, generator: torch.Generator, mask_index: int = 0) -> Spans:
        return super().sample(torch.default_generator)


class NeedsAServer(RandomSpans):
    def __init__(self, documents: Any, titles: Any, people: Any, places: Any, block_size: int) -> None:
        raise OSError("no server")


def no_schedule(total_positions: int) -> Any:
    return None


def failing(total_positions: int) -> Any:
    raise KeyError("rate")


def uphill(total_positions: int) -> Callable[[int], float]:
    return lambda positions: -1.0


def no_number(total_positions: int) -> Callable[[int], Any]:
    return lambda positions: None


def divides_by_zero_at_the_end(total_positions: int) -> Callable[[int], float]:
    return lambda positions: 1 / (total_positions - positions)


def without_biases(model: nn.Module, lr: float) -> Optimizer:
    return SGD([weight for weight in model.parameters() if weight.ndim > 1], lr=lr)


def mistyped(model: nn.Module, lr: float) -> Optimizer:
    return SGD(model.parameters(), lr=lr, momentun=0.9)  # type: ignore[call-arg]


class NeedsAHost(L.Callback):
    def __init__(self) -> None:
        raise KeyError("host")


class WithoutSources(BatchDataModule):
    def __init__(self, corpus: Any, loading: Any, block_size: int) -> None:
        super().__init__(corpus, loading)


class WithoutInit(BatchDataModule):
    def __init__(self, corpus: Any, loading: Any, block_size: int) -> None:
        self.ids, self.train_sources = Tensor(), []


class FailsInAHook(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        print(pl_module.model.blocks[0].attention)


class ReadsAFileInAHook(L.Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        Path("/gone/x").read_text()


class FailsInOneProcess(L.Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 3:
            raise CheckpointError("/full: No space left on device")


class StopsInOneProcess(L.Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.stop)

    def stop(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 6:
            trainer.should_stop = True


class BlocksTheResult(L.Callback):
    """Takes the name of the file that the first process writes after the training."""

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        (Path(trainer.default_root_dir) / "result.json").mkdir(exist_ok=True)
