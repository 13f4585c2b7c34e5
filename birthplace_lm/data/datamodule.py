"""LightningDataModules: span corruption for pretraining, question answering for finetuning."""

from collections.abc import Callable, Mapping
from typing import Any

from birthplace_lm.data.batch_datamodule import BatchDataModule, LoaderConfig
from birthplace_lm.data.corpora.consistency import owner, title_of
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.language_modeling import LanguageModeling
from birthplace_lm.data.masking.spans import SpanSampler
from birthplace_lm.data.prompt_format import LinePrompt, MaskedPrompt, PromptFormat, own_lines
from birthplace_lm.data.question_answering import QuestionAnswering, without_non_ascii
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.sequences import MAX_SHIFT, EncodedText
from birthplace_lm.data.sources import LeftPadded
from birthplace_lm.data.span_corruption import SpanCorruption
from birthplace_lm.errors import InputError

SPAN_CORRUPTION_NOTE = """
The validation loss (`val_loss`, nats per character) is measured on four batches of the lines of training,
the same ones every time, with other draws of the masked spans. No line is held out, because the model must
read about every person.

It may rise while exact match rises: some spans, such as dates, do not follow from the name, and the surer a
model is, the more nats a wrong one costs. Exact match counts the birthplace alone.
"""
LANGUAGE_MODELING_NOTE = """
The validation loss (`val_loss`, nats per character) is that of four batches of the lines of training, the
same ones every time. No line is held out, because the model must read about every person: it tells how well
the text is learned.
"""
QUESTION_ANSWERING_NOTE = """
The validation loss (`val_loss`, nats per character) is that of the places, with the MASKs around them, of
four batches of the evaluated questions, the same ones every time: dev, or the rows of `data.holdout_size`.
The log of the run warns about those that are also training questions.

It may rise while exact match stays or rises: a wrong place costs more nats the surer the model is, and
exact match counts it as one error.
"""
MIN_BLOCK_PER_MASK = 16  # characters of the block for each of several masks


class SpanCorruptionDataModule(BatchDataModule):
    """Pretraining data: one corrupted row per document, mixed with some of the train questions.

    Validation has the same documents, because the model must read about every person. Its spans are drawn
    independently of training; if few spans are likely, many of its rows equal rows of training.

    Args:
        spans: factory of the span sampler, called with `documents` and their `titles`, `people` and `places`
            of the train questions, and `block_size`, the room of a span.
        closing_mask, loss_on, masks_per_row: see `SpanCorruption`; every span has an equal share of
            the room that the largest shift leaves in the block.
        question_fraction: fraction of the train questions in an epoch, sampled again in every epoch.
        min_shift, max_shift: of the documents, see `LeftPadded`; None: the number of characters before the
            name in a question, so that names have the same positions in both. Questions are not shifted.

    Raises:
        ValueError: an argument is out of range; the message begins with its name.
        InputError: the template has more characters before the name than a document can be shifted.
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
        low, high = _shifts(corpus.question, min_shift, max_shift)
        room = _room_beside_shift(block_size, high)
        span_block = room // max(masks_per_row, 1)
        if masks_per_row > 1 and span_block < MIN_BLOCK_PER_MASK:
            raise ValueError(
                f"masks_per_row={masks_per_row}: a block of {block_size} characters, {room} of them beside"
                f" the shift, has room for {max(1, room // MIN_BLOCK_PER_MASK)}"
            )
        documents, questions = self._encode_corpus(question_fraction)
        train = corpus.train.rows
        people = [corpus.question.name_in(row.question) or "" for row in train]
        places = [row.place or "" for row in train]
        lines = corpus.documents.training_lines
        titles = [title_of(line, corpus.names) for line in lines]
        try:
            sampler = spans(
                documents=lines, titles=titles, people=people, places=places, block_size=span_block
            )
        except ValueError as error:
            raise ValueError(f"spans.{error}") from error
        corruption = SpanCorruption(documents, sampler, closing_mask, loss_on, span_block, masks_per_row)
        self.prompt_format = self.prompt_format_of({"closing_mask": closing_mask, "min_shift": low}, corpus)
        self.warnings = [f"spans: {warning}" for warning in getattr(sampler, "warnings", ())]
        shifted = LeftPadded(corruption, low, high, block_size)
        self.train_sources = [shifted, questions] if len(questions) else [shifted]
        self.validation_sources = [shifted]

    @classmethod
    def prompt_format_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> PromptFormat | None:
        lines = corpus.documents.training_lines
        if not settings["closing_mask"] or not any(owner(line, corpus.names) for line in lines):
            return None  # questions about dates, for example: no line begins with one
        shift = settings["min_shift"]
        return MaskedPrompt(_shift(corpus.question) if shift is None else shift)


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
        low, high = _shifts(corpus.question, min_shift, max_shift)
        lines = LanguageModeling(documents, _room_beside_shift(block_size, high))
        # For curves, one line about each person: all of them would take longer than an epoch.
        own = own_lines(corpus.documents.training_lines, corpus.names)
        self.prompt_format = LinePrompt(own, low, max_lines=1)
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
    def prompt_format_of(cls, settings: Mapping[str, Any], corpus: Corpus) -> PromptFormat | None:
        shift, lines = settings["min_shift"], own_lines(corpus.documents.training_lines, corpus.names)
        return LinePrompt(lines, _shift(corpus.question) if shift is None else shift)


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


def _shifts(template: QuestionTemplate, min_shift: int | None, max_shift: int | None) -> tuple[int, int]:
    low, high = (_shift(template) if shift is None else shift for shift in (min_shift, max_shift))
    return low, high


def _room_beside_shift(block_size: int, max_shift: int) -> int:
    """The longest row that can be shifted as far as possible; at least half of the block."""
    return max(block_size - max_shift, block_size // 2)


def _shift(template: QuestionTemplate) -> int:
    """Position of the name in a question, in characters; in a document the name is at position 0.

    Raises:
        InputError: it exceeds `MAX_SHIFT`.
    """
    characters = len(template.prefix)
    if characters > MAX_SHIFT:
        raise InputError(
            f"data.question={template.text}: has {characters} characters before the name, and documents can"
            f" be shifted by {MAX_SHIFT}; shorten it, or give stages.pretrain.dataset.min_shift and max_shift"
        )
    return characters
