"""Batches as a pure function of (seed, epoch, index), and the position of a run within them."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from birthplace_lm.data.randomness import generator_for
from birthplace_lm.data.sequences import PAD_OFFSET, Batch, PieceTable
from birthplace_lm.data.sources import ExampleSource

Key = tuple[int, int]  # epoch, index of the batch within it


class EpochBatchDataset(Dataset[Batch]):
    """Batch `index` of epoch `epoch`, as `batches[epoch, index]`.

    An epoch is planned as a whole: every source draws its rows, which are put in order and cut into batches.
    The plan depends on the seed and the epoch only, so any worker makes the same batch, in any order, and a
    resumed run the same as one that was never stopped. Over several processes each takes every `world`-th row
    of the batch that one process would have made.

    Args:
        sources: what the rows come from.
        ids: the characters the rows point into.
        batch_size: rows of a batch over all processes.
        pad_id: fills the ends of shorter rows.
        seed: of the whole run.
        shuffle: draw a new order every epoch; else the sources one after the other, as they are.
        length_bucket: batches drawn together and sorted by length, so that rows of a batch are alike and
            little of it is PAD; 1 leaves the lengths to chance.
        rank, world: this process and how many there are.
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
        world: int = 1,
    ) -> None:
        self.sources = sources
        self.ids = ids
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.seed = seed
        self.shuffle = shuffle
        self.length_bucket = length_bucket
        self.rank = rank
        self.world = world
        self.rows_total = sum(len(source) for source in sources)
        self._planned: tuple[int, PieceTable, list[Tensor]] | None = None

    def __len__(self) -> int:
        return -(-self.rows_total // self.batch_size)

    def __getitem__(self, key: Key | int) -> Batch:
        # Lightning's overfit_batches counts batches instead of asking for keys: those of epoch 0
        epoch, index = (0, key) if isinstance(key, int) else key
        rows, batches = self._plan(epoch)
        return self._batch(rows, batches[index], (epoch, index))

    def fingerprint(self, key: Key) -> str:
        """SHA-256 of the whole batch, of all processes: two runs that go on alike have the same next one."""
        rows, batches = self._plan(key[0])
        inputs, targets = rows[batches[key[1]]].pairs(self.ids, self.pad_id)
        digest = hashlib.sha256(repr((key, inputs.shape)).encode())
        for part in (inputs, targets):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _plan(self, epoch: int) -> tuple[PieceTable, list[Tensor]]:
        if self._planned is None or self._planned[0] != epoch:
            generator = generator_for("epoch", self.seed, epoch)
            rows = PieceTable.stack([source.rows(generator) for source in self.sources])
            self._planned = (epoch, rows, self._order(rows, generator))
        return self._planned[1], self._planned[2]

    def _order(self, rows: PieceTable, generator: torch.Generator) -> list[Tensor]:
        if not self.shuffle:
            return list(torch.arange(len(rows)).split(self.batch_size))
        order = torch.randperm(len(rows), generator=generator)
        pools = order.split(self.batch_size * self.length_bucket)
        totals = rows.totals
        batches = torch.cat([pool[totals[pool].argsort(stable=True)] for pool in pools]).split(
            self.batch_size
        )
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _batch(self, rows: PieceTable, chosen: Tensor, key: Key) -> Batch:
        everyone = rows[chosen]
        counted = (everyone.totals - everyone.loss_start.clamp(min=1)).sum()
        pads = everyone.lengths[everyone.starts == PAD_OFFSET].sum()
        mine = chosen[self.rank :: self.world]
        filler = len(mine) == 0  # a last batch with fewer rows than processes: look, but learn nothing
        inputs, targets = rows[chosen[:1] if filler else mine].pairs(self.ids, self.pad_id)
        if filler:
            targets = torch.full_like(targets, self.pad_id)
        return Batch(
            inputs=inputs,
            targets=targets,
            key=torch.tensor(key),
            loss_denominator=counted / self.world,
            characters=(everyone.totals - 1).sum() - pads,
        )


class DataCursor:
    """The next batch to train on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.index = 0

    def advance(self, key: Key, length: int) -> None:
        """Batch `key` of an epoch of `length` batches is being trained on: go on to the one after it."""
        epoch, index = key
        self.epoch, self.index = (epoch, index + 1) if index + 1 < length else (epoch + 1, 0)


class ResumableBatchSampler(Sampler[Key]):
    """The keys of the epoch that `position` points into, from there to its end.

    Args:
        length: batches of an epoch.
        position: the next batch to train on; shared with who moves it on.
    """

    def __init__(self, length: int, position: DataCursor) -> None:
        self.length = length
        self.position = position

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        epoch = self.position.epoch
        yield from ((epoch, index) for index in range(self.position.index, self.length))
