"""The data of a run: corpus, questions and vocabulary, read and checked together."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from birthplace_lm.data.corpora.consistency import (
    check_characters,
    check_form,
    check_overlap,
    check_people,
    check_places,
    check_room,
    check_spelling,
)
from birthplace_lm.data.corpora.interventions import (
    exclude_people,
    names_of,
    read_replacements,
    replace_places,
)
from birthplace_lm.data.corpora.qa_files import (
    Documents,
    Question,
    Questions,
    check_lengths,
    majority_answer,
    read_documents,
    read_questions,
    with_equivalents,
)
from birthplace_lm.data.corpora.text_file import TextFile
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, InputError


class DataSettings(Protocol):
    """Where the files are: the group `data` of the configuration."""

    root: str | None
    corpus: str
    train: str
    dev: str
    test: str | None
    holdout_size: int
    exclude: str | None
    replace: str | None
    question: str


@dataclass(frozen=True)
class Corpus:
    """Everything a run reads.

    Attributes:
        documents: one line about each person; all of them are pretrained on.
        train: questions and places that may be trained on.
        dev: questions and places for reporting.
        test: questions for a predictions file; their places may be unknown. None without such a file.
        holdout: train questions that are held out to choose between recipes; empty by default.
        question: the wording that all questions have.
        vocab: of the documents and of the wording.
        notes: what was normalised and skipped, with counts, for the log.
        warnings: what looks like a mistake in the data.
        replacements_sha256: hash of the file that `data.replace` names.
        replaced: the people whose places it replaces.
    """

    documents: Documents
    train: Questions
    dev: Questions
    test: Questions | None
    holdout: list[Question]
    question: QuestionTemplate
    vocab: CharVocab
    notes: list[str]
    warnings: list[str]
    replacements_sha256: str | None = None
    replaced: frozenset[str] = frozenset()

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of every file, by its config key."""
        files: dict[str, Documents | Questions | None] = {
            "corpus": self.documents,
            "train": self.train,
            "dev": self.dev,
            "test": self.test,
        }
        hashes = {key: file.sha256 for key, file in files.items() if file is not None}
        return hashes | ({"replace": self.replacements_sha256} if self.replacements_sha256 else {})

    @cached_property
    def names(self) -> frozenset[str]:
        """The people that the questions of all splits ask about."""
        files = [file for file in (self.train, self.dev, self.test) if file is not None]
        rows = [*(row for file in files for row in file.rows), *self.holdout]
        return frozenset(self.question.name_or_text(row.question) for row in rows)

    @property
    def majority(self) -> str:
        """The most frequent answer of the train questions."""
        return majority_answer(self.train)[0]


def embedded_corpus_dir() -> Path:
    """The embedded corpus: package data of an installed wheel, `data/biographies` of a checkout."""
    package = Path(__file__).parents[2]
    packaged = package / "embedded" / "biographies"
    return packaged if packaged.is_dir() else package.parent / "data" / "biographies"


def data_root(data: DataSettings) -> Path:
    """The folder of the files; the embedded corpus if `root` is None."""
    return embedded_corpus_dir() if data.root is None else Path(os.path.expanduser(data.root))


def read_corpus(data: DataSettings, block_size: int) -> Corpus:
    """Read and check all files, once in a process as long as they stay the same.

    Raises:
        InputError: with file and line, for everything that training or scoring cannot use.
    """
    root = data_root(data)
    if not os.path.isdir(root):  # Path.is_dir raises for a path that is too long or may not be read
        raise InputError(f"data.root={root}: not a directory; name the one that holds {data.corpus}")
    names = (data.corpus, data.train, data.dev, data.test)
    replace = data.replace and os.path.expanduser(data.replace)
    hashes = tuple(_sha256(root / name) for name in (*names, replace) if name)
    question = QuestionTemplate.parse(data.question)
    return _read(root, names, data.holdout_size, data.exclude, replace, question, block_size, hashes)


def _sha256(path: Path) -> str | None:
    """SHA-256 of a regular file; None if it cannot be read, because the reader then reports the error."""
    if not os.path.isfile(path):
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@lru_cache(maxsize=16)
def _read(
    root: Path,
    names: tuple[str, str, str, str | None],
    holdout_size: int,
    exclude: str | None,
    replace: str | None,
    question: QuestionTemplate,
    block_size: int,
    hashes: tuple[str | None, ...],  # for the cache: a file that has changed is read again
) -> Corpus:
    documents = read_documents(root / names[0], "data.corpus")
    train = read_questions(root / names[1], key="data.train")
    dev = read_questions(root / names[2], key="data.dev")
    test = read_questions(root / names[3], "optional", "data.test") if names[3] else None
    vocab = CharVocab.from_text("".join([documents.text, *documents.training_lines, question.about("")]))
    test = with_equivalents(test, vocab) if test is not None else None
    replacements: Mapping[str, tuple[str, int]] = {}
    replacements_file: TextFile | None = None
    if replace is not None:
        replacements, replacements_file = read_replacements(root / replace)
        splits = [split for split in (train, dev, test) if split is not None]
        documents, (train, dev, *tests) = replace_places(
            documents, splits, question, replacements, root / replace
        )
        test = tests[0] if tests else None
        vocab = CharVocab.from_text("".join([*vocab.symbols[2:], documents.text]))
    _check_questions(train, dev, test, question, vocab, block_size)
    warnings = _warnings(documents, train, dev, test, question, vocab, block_size)
    if exclude is not None:  # the vocabulary stays that of all lines: such models compare
        split = {"train": train, "dev": dev, "test": test}[exclude]
        if split is None:
            raise InputError(f"data.exclude={exclude}: there is no {exclude} split; data.{exclude} is null")
        documents, absent = exclude_people(documents, names_of(split, question))
        warnings += absent
    train, holdout = _hold_out(train, holdout_size)
    warnings += check_overlap(train, holdout, "held-out questions")
    files = [file for file in (replacements_file, documents, train, dev, test) if file is not None]
    summary = (
        f"{len(documents.text)} characters, {len(vocab)} symbols; {len(documents.lines)} documents,"
        f" {len(train.rows)} train, {len(dev.rows)} dev, {len(test.rows) if test else 0} test questions"
    )
    return Corpus(
        documents=documents,
        train=train,
        dev=dev,
        test=test,
        holdout=holdout.rows,
        question=question,
        vocab=vocab,
        notes=[summary, *(note for file in files for note in file.notes)],
        warnings=warnings,
        replacements_sha256=None if replacements_file is None else replacements_file.sha256,
        replaced=frozenset(replacements),
    )


def _check_questions(
    train: Questions,
    dev: Questions,
    test: Questions | None,
    template: QuestionTemplate,
    vocab: CharVocab,
    block_size: int,
) -> None:
    """Checks that all questions fit the block and the template; `test` may have unknown characters."""
    if len(template.about("")) + 4 > block_size:  # a name, an answer and two MASKs
        raise InputError(
            f"data.question={template.text}: leaves no room for a name and an answer in"
            f" model.block_size={block_size}; shorten it or raise model.block_size"
        )
    for questions in (train, dev):
        check_lengths(questions, vocab, block_size)
    if test is not None:
        check_lengths(test, None, block_size)
    for other in (train, dev, test):
        if other is not None and (misfits := check_form(other, template)):
            raise InputError(f"{misfits[0]}; correct them, or give their wording as data.question")


def _warnings(
    documents: Documents,
    train: Questions,
    dev: Questions,
    test: Questions | None,
    template: QuestionTemplate,
    vocab: CharVocab,
    block_size: int,
) -> list[str]:
    warnings = check_overlap(train, dev) + check_spelling(train, dev)
    warnings += check_overlap(train, test) if test is not None else []
    for questions in (train, dev, test):
        if questions is not None:
            warnings += questions.warnings + check_people(questions, documents, template)
            warnings += check_places(questions, documents) + check_room(questions, block_size)
    return warnings + (check_characters(test, vocab) if test is not None else [])


def check_data_hashes(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that the data files have not changed since training started.

    Args:
        before, now: SHA-256 of the files, by their config key.

    Raises:
        CheckpointError: a file has changed.
    """
    for key, digest in now.items():
        if before.get(key) != digest:
            raise CheckpointError(
                f"data.{key}: the file has changed since training started: its SHA-256 was"
                f" {before.get(key)} and is {digest}; restore it, or take another runs_root"
            )


def _hold_out(train: Questions, count: int) -> tuple[Questions, Questions]:
    """Hold out `count` questions, evenly spread over the file."""
    rows = train.rows
    if not 0 <= count < len(rows):
        raise InputError(
            f"data.holdout_size={count}: must be from 0 to {len(rows) - 1}: data.train has {len(rows)}"
            " questions, and one must remain"
        )
    held_out = {i * len(rows) // count for i in range(count)}
    remaining = [row for i, row in enumerate(rows) if i not in held_out]
    return replace(train, rows=remaining), replace(train, rows=[rows[i] for i in sorted(held_out)])
