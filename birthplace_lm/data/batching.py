"""Batches as a pure function of (seed, epoch, index), and the run's position among them."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from birthplace_lm.data.randomness import generator_for
from birthplace_lm.data.sequences import PAD_OFFSET, Batch, PieceTable
from birthplace_lm.data.sources import ExampleSource

BatchId = tuple[int, int]  # epoch, index of the batch within it


class EpochBatchDataset(Dataset[Batch]):
    """Map-style dataset of batches: batch `index` of epoch `epoch` is `dataset[epoch, index]`.

    An epoch is planned at once: every source samples its rows, which are shuffled and split into batches.
    The plan depends on the seed and the epoch only. Any worker therefore makes the same batch, in any order,
    and a resumed run makes the batches of an uninterrupted one. With several processes each takes every
    `world_size`-th row of the batch that a single process would make.

    Args:
        sources: where the rows come from.
        ids: the characters that the rows point into.
        batch_size: rows of a batch over all processes.
        pad_id: fills the ends of shorter rows.
        seed: of the run.
        shuffle: new order in every epoch; otherwise one source after the other, in its own order.
        length_bucket: number of batches that are sampled together and sorted by length, so that the rows of
            a batch have similar lengths and need little padding; 1 leaves the lengths to chance.
        rank, world_size: this process and the number of processes.
        same_epoch: every epoch has the batches of the first one.
    """

    def __init__(
        self,
        sources: Sequence[ExampleSource],
        ids: Tensor,
        batch_size: int,
        pad_id: int,
        seed: int,
        shuffle: bool,
        length_bucket: int,
        rank: int = 0,
        world_size: int = 1,
        same_epoch: bool = False,
    ) -> None:
        self.sources = sources
        self.ids = ids
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.seed = seed
        self.shuffle = shuffle
        self.length_bucket = length_bucket
        self.rank = rank
        self.world_size = world_size
        self.same_epoch = same_epoch
        self.rows_total = sum(len(source) for source in sources)
        self._planned: tuple[int, PieceTable, list[Tensor]] | None = None

    def __len__(self) -> int:
        return -(-self.rows_total // self.batch_size)

    def __getitem__(self, batch_id: BatchId) -> Batch:
        epoch, index = batch_id
        rows, batches = self._plan(epoch)
        return self._batch(rows, batches[index], (epoch, index))

    def fingerprint(self, batch_id: BatchId) -> str:
        """SHA-256 of a batch over all processes; equal hashes mean that two runs continue with equal data."""
        epoch, index = batch_id
        rows, batches = self._plan(epoch)
        inputs, targets = rows[batches[index]].inputs_and_targets(self.ids, self.pad_id)
        digest = hashlib.sha256(repr((batch_id, inputs.shape)).encode())
        for tensor in (inputs, targets):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _plan(self, epoch: int) -> tuple[PieceTable, list[Tensor]]:
        epoch = 0 if self.same_epoch else epoch
        if self._planned is None or self._planned[0] != epoch:
            generator = generator_for("epoch", self.seed, epoch)
            rows = PieceTable.stack([source.rows(generator) for source in self.sources])
            self._planned = (epoch, rows, self._order(rows, generator))
        return self._planned[1], self._planned[2]

    def _order(self, rows: PieceTable, generator: torch.Generator) -> list[Tensor]:
        if not self.shuffle:
            return list(torch.arange(len(rows)).split(self.batch_size))
        order = torch.randperm(len(rows), generator=generator)
        buckets = order.split(self.batch_size * self.length_bucket)
        by_length = torch.cat([bucket[rows.totals[bucket].argsort(stable=True)] for bucket in buckets])
        batches = by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _batch(self, rows: PieceTable, indices: Tensor, batch_id: BatchId) -> Batch:
        global_batch = rows[indices]
        counted = (global_batch.totals - global_batch.loss_start.clamp(min=1)).sum()
        pads = global_batch.lengths[global_batch.starts == PAD_OFFSET].sum()
        local = indices[self.rank :: self.world_size]
        is_empty = len(local) == 0  # a last batch with fewer rows than processes: a row without loss
        inputs, targets = rows[indices[:1] if is_empty else local].inputs_and_targets(self.ids, self.pad_id)
        if is_empty:
            targets = torch.full_like(targets, self.pad_id)
        return Batch(
            inputs=inputs,
            targets=targets,
            batch_id=batch_id,
            loss_denominator=int(counted) / self.world_size,
            characters=int((global_batch.totals - 1).sum() - pads),
        )


class DataCursor:
    """Position of a run in its training data: the next batch to train on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.index = 0

    def advance(self, batch_id: BatchId, epoch_length: int) -> None:
        """Moves to the batch after `batch_id`, where an epoch has `epoch_length` batches."""
        epoch, index = batch_id
        self.epoch, self.index = (epoch, index + 1) if index + 1 < epoch_length else (epoch + 1, 0)


class ResumableBatchSampler(Sampler[BatchId]):
    """Batch ids of the cursor's epoch, from the cursor to the end of the epoch.

    Args:
        epoch_length: batches of an epoch.
        cursor: the next batch to train on; the data module advances it.
    """

    def __init__(self, epoch_length: int, cursor: DataCursor) -> None:
        self.epoch_length = epoch_length
        self.cursor = cursor

    def __len__(self) -> int:
        return self.epoch_length

    def __iter__(self) -> Iterator[BatchId]:
        epoch = self.cursor.epoch
        yield from ((epoch, index) for index in range(self.cursor.index, self.epoch_length))
