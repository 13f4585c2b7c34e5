"""LightningDataModules of the two datasets."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from birthplace_lm.data.batching import DataCursor, EpochBatchDataset, ResumableBatchSampler
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.data.masking.spans import SpanSampler
from birthplace_lm.data.question_answering import QuestionAnswering, ascii_only
from birthplace_lm.data.questions import name_from_question
from birthplace_lm.data.sequences import EncodedText
from birthplace_lm.data.sources import ExampleSource, LeftPadded, Subsample
from birthplace_lm.data.span_corruption import SpanCorruption
from birthplace_lm.errors import CheckpointError, InputError

QUESTIONS_PER_BATCH = 256
VALIDATION_BATCHES = 4
LEAST_SHARE = 16  # characters of the block for each of several masks_per_row


@dataclass(frozen=True)
class LoaderConfig:
    """How a stage cuts its rows into batches.

    Attributes:
        batch_size: rows per process and step.
        num_workers: processes that make batches; they change the speed, never a batch.
        seed: of the run.
        shuffle: draw a new order every epoch.
        length_bucket: batches drawn together and sorted by length; see `EpochBatchDataset`.
    """

    batch_size: int
    num_workers: int
    seed: int
    shuffle: bool
    length_bucket: int


class BatchDataModule(L.LightningDataModule):
    """Serves a stage: training batches, held-out batches for the loss, and questions to answer.

    The position within the training data is part of its state, with a hash of the next batch: a checkpoint
    resumes with that very batch or not at all.
    A dataset is a subclass that sets `ids`, `train_sources` and `validation_sources`.
    """

    ids: Tensor
    train_sources: Sequence[ExampleSource]
    validation_sources: Sequence[ExampleSource]

    def __init__(self, corpus: Corpus, loading: LoaderConfig) -> None:
        super().__init__()
        self.pad_id = corpus.vocab.pad_id
        self.questions = corpus.holdout or corpus.dev.rows
        self.loading = loading
        self.position = DataCursor()
        self._expected: str | None = None  # the next batch, according to the checkpoint

    @property
    def train_rows(self) -> int:
        """Rows of one epoch."""
        return sum(len(source) for source in self.train_sources)

    def train_dataloader(self) -> DataLoader[Any]:
        """The rest of the epoch that `position` is in.

        Raises:
            CheckpointError: its next batch is not the one that the checkpoint had before it.
        """
        self.train_batches = self._batches(self.train_sources, self.loading.seed, self.loading.shuffle)
        if self._expected not in (None, self._next_batch()):
            raise CheckpointError(
                f"resume: batch {self.position.index} of epoch {self.position.epoch} was not the next one"
                " when the checkpoint was saved: the number of processes, the versions or the code differ"
            )
        keys = ResumableBatchSampler(self._epoch_batches, self.position)
        return self._loader(self.train_batches, sampler=keys)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The same few batches every time, for the loss; and all questions, for exact match."""
        batches = self._batches(self.validation_sources, seed=-1, shuffle=True)
        keys = [(0, index) for index in range(min(VALIDATION_BATCHES, len(batches)))]
        mine = self.questions[self._rank :: self._world]
        questions: Any = DataLoader(
            mine,  # type: ignore[arg-type]
            batch_size=QUESTIONS_PER_BATCH,
            collate_fn=_as_strings,
            generator=torch.Generator(),  # see `_loader`
        )
        return [self._loader(batches, sampler=keys, num_workers=0), questions]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.training:
            epoch, index = batch["key"].tolist()
            self.position.advance((epoch, index), self._epoch_batches)
        return batch

    def state_dict(self) -> dict[str, Any]:
        position = {"epoch": self.position.epoch, "index": self.position.index}
        return {**position, "next_batch": self._next_batch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position.epoch, self.position.index = state_dict["epoch"], state_dict["index"]
        self._expected = state_dict["next_batch"]

    def _next_batch(self) -> str:
        return self.train_batches.fingerprint((self.position.epoch, self.position.index))

    @property
    def _epoch_batches(self) -> int:
        """Batches of an epoch: its first ones, where the trainer limits them to a number or a share."""
        whole = len(self.train_batches)
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches or 1.0
        return min(whole, limit) if isinstance(limit, int) else max(1, int(whole * limit))

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _batches(self, sources: Sequence[ExampleSource], seed: int, shuffle: bool) -> EpochBatchDataset:
        return EpochBatchDataset(
            sources,
            self.ids,
            self.loading.batch_size * self._world,
            self.pad_id,
            seed,
            shuffle,
            self.loading.length_bucket,
            self._rank,
            self._world,
        )

    def _loader(
        self, batches: EpochBatchDataset, sampler: Any, num_workers: int | None = None
    ) -> DataLoader[Any]:
        workers = self.loading.num_workers if num_workers is None else num_workers
        return DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Else making an iterator would draw from the global stream, and a resumed run makes one more.
            generator=torch.Generator(),
            worker_init_fn=partial(_begin_worker, os.getpid()),
        )


class SpanCorruptionDataModule(BatchDataModule):
    """Pretraining: a corrupted row per document, and some of the train questions among them.

    Held out is a corruption that training never draws; the documents are the same, since every person has to
    be read about.

    Args:
        spans: factory of the span chooser, called with `documents`, `people` and `places` of the train
            questions, and `block_size`.
        closing_mask, loss_on, masks_per_row: see `SpanCorruption`; every span has an equal share of
            the block.
        question_fraction: share of the train questions that is mixed into every epoch, drawn anew each time.
        min_shift, max_shift: of the documents, see `LeftPadded`; questions stay where they will be asked.

    Raises:
        InputError: `question_fraction` or `masks_per_row` is out of range.
    """

    def __init__(
        self,
        corpus: Corpus,
        loading: LoaderConfig,
        block_size: int,
        spans: Callable[..., SpanSampler],
        closing_mask: bool,
        loss_on: str,
        masks_per_row: int,
        question_fraction: float,
        min_shift: int,
        max_shift: int,
    ) -> None:
        super().__init__(corpus, loading)
        if not 0 <= question_fraction <= 1:
            raise InputError(
                f"stages.pretrain.dataset.question_fraction={question_fraction}: must be from 0 to 1"
            )
        documents, train = corpus.documents.lines, corpus.train.rows
        places = [row.place or "" for row in train]
        text = EncodedText.encode([*documents, *(row.question for row in train), *places], corpus.vocab)
        pieces = text.pieces.split([len(documents), len(train), len(train)])
        self.ids = text.ids
        people = [name_from_question(row.question) for row in train]
        share = block_size // max(masks_per_row, 1)
        if masks_per_row > 1 and share < LEAST_SHARE:
            raise InputError(
                f"stages.pretrain.dataset.masks_per_row={masks_per_row}: a block of {block_size} characters"
                f" has room for {max(1, block_size // LEAST_SHARE)}"
            )
        chooser = spans(documents=documents, people=people, places=places, block_size=share)
        corruption = SpanCorruption(pieces[0], chooser, closing_mask, loss_on, masks_per_row)
        asked = Subsample(QuestionAnswering(pieces[1], pieces[2]), round(question_fraction * len(train)))
        shifted = LeftPadded(corruption, min_shift, max_shift, block_size)
        self.train_sources = [shifted, asked] if len(asked) else [shifted]
        self.validation_sources = [corruption]


class QuestionAnsweringDataModule(BatchDataModule):
    """Finetuning: the train questions with their places. Held out are those of dev.

    Args:
        ascii_only: drop the non-ASCII characters of the train questions, as the 2021 code does.
    """

    def __init__(self, corpus: Corpus, loading: LoaderConfig, block_size: int, ascii_only: bool) -> None:
        super().__init__(corpus, loading)
        train, held_out = corpus.train.rows, self.questions
        strings = [_asked(row, ascii_only) for row in train] + [row.question for row in held_out]
        strings += [row.place or "" for row in (*train, *held_out)]
        text = EncodedText.encode(strings, corpus.vocab)
        sizes = [len(train), len(held_out)]
        questions, held_out_questions, places, held_out_places = text.pieces.split(sizes * 2)
        self.ids = text.ids
        self.train_sources = [QuestionAnswering(questions, places)]
        self.validation_sources = [QuestionAnswering(held_out_questions, held_out_places)]


def _begin_worker(parent: int, worker: int) -> None:
    """Let a worker end when the process it works for has, and no sooner.

    A SIGTERM for all processes of a job would end torch's workers before the last step is saved; and torch
    does not notice a parent that is killed while the worker starts, which then stays for ever.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def _asked(row: Question, only_ascii: bool) -> str:
    return ascii_only(row.question) if only_ascii else row.question


def _as_strings(rows: Sequence[Question]) -> list[tuple[str, str]]:
    """Questions with their places; Lightning cannot move our frozen dataclass to a device."""
    return [(row.question, row.place or "") for row in rows]
