"""What the LightningDataModules share: batches in an order that a run resumes exactly, and validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from birthplace_lm.data.batching import DataCursor, EpochBatchDataset, ResumableBatchSampler
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.data.prompt_format import PromptFormat
from birthplace_lm.data.question_answering import QuestionAnswering
from birthplace_lm.data.sequences import EncodedText
from birthplace_lm.data.sources import ExampleSource, Subsample
from birthplace_lm.data.workers import PREFETCHED_BATCHES, end_with_parent, threadless_context
from birthplace_lm.errors import CheckpointError

QUESTIONS_PER_BATCH = 256
VALIDATION_BATCHES = 4


@dataclass(frozen=True)
class LoaderConfig:
    """How a stage splits its rows into batches.

    Attributes:
        batch_size: rows of a batch, over all processes.
        num_workers: processes that make batches; they change the speed, never a batch.
        seed: of the run.
        shuffle: new order in every epoch.
        length_bucket: batches sampled together and sorted by length; see `EpochBatchDataset`.
        same_epoch: every epoch has the batches of the first one (`trainer.overfit_batches`).
    """

    batch_size: int
    num_workers: int
    seed: int
    shuffle: bool
    length_bucket: int
    same_epoch: bool = False


class BatchDataModule(L.LightningDataModule):
    """Data of a stage: training batches, validation batches for the loss, and questions to answer.

    Its state is the position in the training data and a hash of the next batch: a run resumes with exactly
    that batch, or fails. A dataset is a subclass that sets `ids`, `train_sources` and `validation_sources`,
    may explain its validation loss in `held_out_note` (Markdown), which TensorBoard shows, and may have
    `warnings` for the log.

    Attributes:
        corpus: all data of the run.
        prompt_format: makes cloze prompts like the text of training; None if that does not state places.
    """

    held_out_note = ""
    warnings: Sequence[str] = ()
    prompt_format: PromptFormat | None = None
    ids: Tensor
    train_sources: Sequence[ExampleSource]
    validation_sources: Sequence[ExampleSource]

    def __init__(self, corpus: Corpus, loading: LoaderConfig) -> None:
        super().__init__()
        self.corpus = corpus
        self.pad_id = corpus.vocab.pad_id
        self.questions = corpus.holdout or corpus.dev.rows
        self.loading = loading
        self.cursor = DataCursor()
        self._train_batches: EpochBatchDataset | None = None
        self._expected_fingerprint: str | None = None  # of the next batch, from the checkpoint

    @classmethod
    def prompt_format_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> PromptFormat | None:
        """The `prompt_format` of a data module with these arguments."""
        return None

    @property
    def train_rows(self) -> int:
        """Rows of one epoch."""
        return sum(len(source) for source in self.train_sources)

    def setup(self, stage: str) -> None:
        """Begin a fit at the first batch; Lightning loads the state of a checkpoint after this."""
        if stage == "fit":
            self.cursor, self._expected_fingerprint = DataCursor(), None

    @property
    def train_batches(self) -> EpochBatchDataset:
        """The batches of training, made for the number of processes of the trainer."""
        if self._train_batches is None:
            self._train_batches = self._dataset(self.train_sources, self.loading.seed, self.loading.shuffle)
        return self._train_batches

    def train_dataloader(self) -> DataLoader[Any]:
        """The rest of the epoch that the cursor is in.

        Raises:
            CheckpointError: the next batch is not the one that followed the checkpoint.
        """
        self._train_batches = None  # the trainer may be another one
        if self._expected_fingerprint not in (None, self._next_fingerprint()):
            raise CheckpointError(
                f"resume: batch {self.cursor.index} of epoch {self.cursor.epoch} is not the batch that"
                " followed the checkpoint: the versions or the code differ; resume=never starts again"
            )
        sampler = ResumableBatchSampler(self._epoch_length, self.cursor)
        return self._loader(self.train_batches, sampler, self.loading.num_workers)

    def check_first_batch(self) -> None:
        """Make the first batch of training twice, so that wrong rows end a run at its start.

        Raises:
            ValueError: the two differ, so no run could be resumed.
        """
        sources, seed, shuffle = self.train_sources, self.loading.seed, self.loading.shuffle
        first, second = (self._dataset(sources, seed, shuffle).fingerprint((0, 0)) for _ in range(2))
        if first != second:
            raise ValueError(
                "the rows of an epoch differ when they are made again; take all random numbers from the"
                " generator, otherwise no run can be resumed"
            )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The same few batches every time, for the loss; and all questions, for exact match."""
        dataset = self._dataset(self.validation_sources, seed=-1, shuffle=True)
        batch_ids = [(0, index) for index in range(min(VALIDATION_BATCHES, len(dataset)))]
        questions: Any = DataLoader(
            self.questions[self._rank :: self._world_size],  # type: ignore[arg-type]
            batch_size=QUESTIONS_PER_BATCH,
            collate_fn=_as_strings,
            generator=torch.Generator(),  # see `_loader`
        )
        return [self._loader(dataset, batch_ids, num_workers=0), questions]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.training:
            self.cursor.advance(batch["batch_id"], self._epoch_length)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.cursor.epoch,
            "index": self.cursor.index,
            "next_batch": self._next_fingerprint(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cursor.epoch, self.cursor.index = state_dict["epoch"], state_dict["index"]
        self._expected_fingerprint = state_dict["next_batch"]

    def _encode_corpus(self, question_fraction: float) -> tuple[Tensor, Subsample]:
        """Set `ids`; start and length (N, 2) of every document, and a fraction of the train questions."""
        if not 0 <= question_fraction <= 1:
            raise ValueError(f"question_fraction={question_fraction}: must be from 0 to 1")
        lines, train = self.corpus.documents.training_lines, self.corpus.train.rows
        strings = [*lines, *(row.question for row in train), *(row.place or "" for row in train)]
        text = EncodedText.encode(strings, self.corpus.vocab)
        documents, questions, places = text.pieces.split([len(lines), len(train), len(train)])
        self.ids = text.ids
        count = questions_per_epoch(question_fraction, len(train))
        return documents, Subsample(QuestionAnswering(questions, places), count)

    def _next_fingerprint(self) -> str:
        return self.train_batches.fingerprint((self.cursor.epoch, self.cursor.index))

    @property
    def _epoch_length(self) -> int:
        """Batches of an epoch, where `limit_train_batches` may be a number or a fraction of them."""
        batches = len(self.train_batches)
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches or 1.0
        return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _dataset(self, sources: Sequence[ExampleSource], seed: int, shuffle: bool) -> EpochBatchDataset:
        return EpochBatchDataset(
            sources,
            self.ids,
            self.loading.batch_size,
            self.pad_id,
            seed,
            shuffle,
            self.loading.length_bucket,
            self._rank,
            self._world_size,
            self.loading.same_epoch,
        )

    def _loader(self, dataset: EpochBatchDataset, sampler: Any, num_workers: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            multiprocessing_context=threadless_context() if num_workers and self._world_size > 1 else None,
            collate_fn=_as_it_is,
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
            # Otherwise an iterator would use the global random state, and a resumed run makes one more.
            generator=torch.Generator(),
            worker_init_fn=end_with_parent,
        )


def questions_per_epoch(fraction: float, questions: int) -> int:
    """How many of the train questions a fraction of them is; at least one, unless the fraction is 0."""
    return max(1, round(fraction * questions)) if fraction else 0


def _as_it_is(batch: Any) -> Any:
    """torch would make a list of `batch_id`."""
    return batch


def _as_strings(rows: Sequence[Question]) -> list[tuple[str, str]]:
    """Questions with their places; Lightning cannot move our frozen dataclass to a device."""
    return [(row.question, row.place or "") for row in rows]
