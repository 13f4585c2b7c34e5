"""LightningDataModules: span corruption for pretraining, question answering for finetuning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from birthplace_lm.data.batching import DataCursor, EpochBatchDataset, ResumableBatchSampler
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.data.language_modeling import LanguageModeling
from birthplace_lm.data.masking.spans import SpanSampler
from birthplace_lm.data.question_answering import QuestionAnswering, without_non_ascii
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.sequences import MAX_SHIFT, EncodedText
from birthplace_lm.data.sources import ExampleSource, LeftPadded, Subsample
from birthplace_lm.data.span_corruption import SpanCorruption
from birthplace_lm.data.text_form import LineForm, MaskedForm, TextForm, own_lines
from birthplace_lm.data.workers import check_shared_memory, end_with_parent, threadless_context
from birthplace_lm.errors import CheckpointError, InputError

SPAN_CORRUPTION_NOTE = """
The held-out loss (`val_loss`, nats per character) is measured on four batches of the lines of training, the
same ones every time, with other draws of the masked spans. No line is held out, because the model must read
about every person.

It may rise while exact match rises: some spans, such as dates, do not follow from the name, and the surer a
model is, the more nats a wrong one costs. Exact match counts the birthplace alone.
"""
LANGUAGE_MODELING_NOTE = """
The held-out loss (`val_loss`, nats per character) is that of four batches of the lines of training, the
same ones every time. No line is held out, because the model must read about every person: it tells how well
the text is learned.
"""
QUESTION_ANSWERING_NOTE = """
The held-out loss (`val_loss`, nats per character) is that of the places, with the MASKs around them, of
four batches of the evaluated questions, the same ones every time: dev, or the rows of `data.holdout_size`.
The log of the run warns about those that are also training questions.

It may rise while exact match stays or rises: a wrong place costs more nats the surer the model is, and
exact match counts it as one error.
"""
QUESTIONS_PER_BATCH = 256
VALIDATION_BATCHES = 4
MIN_BLOCK_PER_MASK = 16  # characters of the block for each of several masks


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
    """Data of a stage: training batches, held-out batches for the loss, and questions to answer.

    Its state is the position in the training data and a hash of the next batch: a run resumes with exactly
    that batch, or fails. A dataset is a subclass that sets `ids`, `train_sources` and `validation_sources`,
    may explain its held-out loss in `held_out_note` (Markdown), which TensorBoard shows, and may have
    `warnings` for the log.

    Attributes:
        corpus: all data of the run.
        text_form: how the text of training tells a place; None if it does not.
    """

    held_out_note = ""
    warnings: Sequence[str] = ()
    text_form: TextForm | None = None
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
    def text_form_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> TextForm | None:
        """The `text_form` of a data module with these arguments."""
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
                " followed the checkpoint: the versions or the code differ"
            )
        sampler = ResumableBatchSampler(self._epoch_length, self.cursor)
        return self._loader(self.train_batches, sampler, self.loading.num_workers)

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
            epoch, index = batch["batch_id"].tolist()
            self.cursor.advance((epoch, index), self._epoch_length)
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
        count = round(question_fraction * len(train))
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
        check_shared_memory(num_workers)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            multiprocessing_context=threadless_context() if num_workers and self._world_size > 1 else None,
            persistent_workers=num_workers > 0,
            # Otherwise an iterator would use the global random state, and a resumed run makes one more.
            generator=torch.Generator(),
            worker_init_fn=end_with_parent,
        )


class SpanCorruptionDataModule(BatchDataModule):
    """Pretraining data: one corrupted row per document, mixed with some of the train questions.

    Validation has the same documents with spans that training never samples: the model must read about every
    person, so no document is held out.

    Args:
        spans: factory of the span sampler, called with `documents`, `people` and `places` of the train
            questions, and `block_size`.
        closing_mask, loss_on, masks_per_row: see `SpanCorruption`; every span has an equal share of
            the block.
        question_fraction: fraction of the train questions in an epoch, sampled again in every epoch.
        min_shift, max_shift: of the documents, see `LeftPadded`; None: the number of characters before the
            name in a question, so that names have the same positions in both. Questions are not shifted.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
        InputError: the template has more characters before the name than a document can be shifted, or the
            sampler breaks the promise of `Spans`.
    """

    held_out_note = SPAN_CORRUPTION_NOTE

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
        min_shift: int | None,
        max_shift: int | None,
    ) -> None:
        super().__init__(corpus, loading)
        span_block = block_size // max(masks_per_row, 1)
        if masks_per_row > 1 and span_block < MIN_BLOCK_PER_MASK:
            raise ValueError(
                f"masks_per_row={masks_per_row}: a block of {block_size} characters has room for"
                f" {max(1, block_size // MIN_BLOCK_PER_MASK)}"
            )
        documents, questions = self._encode_corpus(question_fraction)
        train = corpus.train.rows
        people = [corpus.question.name_in(row.question) or "" for row in train]
        places = [row.place or "" for row in train]
        lines = corpus.documents.training_lines
        try:
            sampler = spans(documents=lines, people=people, places=places, block_size=span_block)
        except ValueError as error:
            raise ValueError(f"spans.{error}") from error
        corruption = SpanCorruption(documents, sampler, closing_mask, loss_on, span_block, masks_per_row)
        corruption.rows(torch.Generator().manual_seed(0))  # so that a wrong sampler ends the run at its start
        low, high = (_shift(corpus.question) if s is None else s for s in (min_shift, max_shift))
        self.text_form = self.text_form_of({"closing_mask": closing_mask, "min_shift": low}, corpus)
        shifted = LeftPadded(corruption, low, high, block_size)
        self.train_sources = [shifted, questions] if len(questions) else [shifted]
        self.validation_sources = [shifted]

    @classmethod
    def text_form_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> TextForm | None:
        shift = settings["min_shift"]
        return (
            MaskedForm(_shift(corpus.question) if shift is None else shift)
            if settings["closing_mask"]
            else None
        )


class LanguageModelingDataModule(BatchDataModule):
    """Pretraining data: every document as it stands, mixed with some of the train questions.

    Validation has the same documents: the model must read about every person, so none is held out.

    Args:
        question_fraction, min_shift, max_shift: as in `SpanCorruptionDataModule`.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
        InputError: the template has more characters before the name than a document can be shifted.
    """

    held_out_note = LANGUAGE_MODELING_NOTE

    def __init__(
        self,
        corpus: Corpus,
        loading: LoaderConfig,
        block_size: int,
        question_fraction: float,
        min_shift: int | None,
        max_shift: int | None,
    ) -> None:
        super().__init__(corpus, loading)
        documents, questions = self._encode_corpus(question_fraction)
        low, high = (_shift(corpus.question) if s is None else s for s in (min_shift, max_shift))
        lines = LanguageModeling(documents, max(block_size - low, block_size // 2))
        # For curves, one line about each person: all of them would take longer than an epoch.
        self.text_form = LineForm(own_lines(corpus.documents.training_lines), low, max_lines=1)
        shifted = LeftPadded(lines, low, high, block_size)
        self.train_sources = [shifted, questions] if len(questions) else [shifted]
        self.validation_sources = [shifted]
        cut = int((lines.rest > 0).sum())
        if cut:
            self.warnings = [
                f"{cut} of {len(lines)} lines are longer than the {lines.block_size} characters that"
                f" model.block_size={block_size} leaves: an epoch reads a random window of each, often"
                " without its name"
            ]

    @classmethod
    def text_form_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> TextForm | None:
        shift, lines = settings["min_shift"], own_lines(corpus.documents.training_lines)
        return LineForm(lines, _shift(corpus.question) if shift is None else shift)


class QuestionAnsweringDataModule(BatchDataModule):
    """Finetuning data: the train questions with their places. Validation has those of dev.

    Args:
        ascii_only: drop the non-ASCII characters of the train questions, as the 2021 code does.
    """

    held_out_note = QUESTION_ANSWERING_NOTE

    def __init__(self, corpus: Corpus, loading: LoaderConfig, block_size: int, ascii_only: bool) -> None:
        super().__init__(corpus, loading)
        train, held_out = corpus.train.rows, self.questions
        strings = [without_non_ascii(row.question) if ascii_only else row.question for row in train]
        strings += [row.question for row in held_out]
        strings += [row.place or "" for row in (*train, *held_out)]
        text = EncodedText.encode(strings, corpus.vocab)
        sizes = [len(train), len(held_out)]
        questions, held_out_questions, places, held_out_places = text.pieces.split(sizes * 2)
        self.ids = text.ids
        self.train_sources = [QuestionAnswering(questions, places)]
        self.validation_sources = [QuestionAnswering(held_out_questions, held_out_places)]


def _shift(template: QuestionTemplate) -> int:
    """By how many characters a name stands further right in a question than in a document."""
    characters = len(template.prefix)
    if characters > MAX_SHIFT:
        raise InputError(
            f"data.question={template.text}: has {characters} characters before the name, and documents can"
            f" be shifted by {MAX_SHIFT}; shorten it, or give stages.pretrain.dataset.min_shift and max_shift"
        )
    return characters


def _as_strings(rows: Sequence[Question]) -> list[tuple[str, str]]:
    """Questions with their places; Lightning cannot move our frozen dataclass to a device."""
    return [(row.question, row.place or "") for row in rows]
