"""Reader of the course's files: one document per line, and one question and answer per line."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from birthplace_lm.data.corpora.text_file import TextFile
from birthplace_lm.data.questions import INVISIBLE, ZERO_WIDTH, normalise
from birthplace_lm.data.vocab import CharVocab, describe
from birthplace_lm.errors import InputError

MIN_DOCUMENT = 4  # characters; span corruption needs a prefix, a masked span and a suffix
SHORT = f"documents shorter than {MIN_DOCUMENT} characters skipped"
NORMALISED = "read with single plain spaces and without invisible characters"
MAX_WARNINGS = 10
RECORD = "'QUESTION<TAB>ANSWER'"
HEADER_WORDS = {
    *("question", "questions", "query", "input", "prompt", "text", "name", "person"),
    *("answer", "answers", "place", "places", "birthplace", "birth_place", "birth place", "place of birth"),
    *("label", "target", "output", "city"),
}

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Documents:
    """A pretraining corpus.

    Example:
        A file of ``Ada Lovelace. Born in London .``, a blank line and ``Alan Turing. Born in London .`` gives

        >>> documents.lines
        ['Ada Lovelace. Born in London .', 'Alan Turing. Born in London .']

    Attributes:
        path: Where it was read.
        lines: The documents, without line ends; blank and too short ones are left out.
        text: The documents, each followed by a newline; characters and vocabulary are counted in it.
        sha256: Of the bytes of the file.
        notes: What was normalised and skipped, with counts, for the log.
    """

    path: Path
    lines: list[str]
    text: str
    sha256: str
    notes: list[str]

    @cached_property
    def training_lines(self) -> list[str]:
        """The documents as the model reads them: normalised as questions and typed names are."""
        return [normalise(line) for line in self.lines]


@dataclass(frozen=True)
class Question:
    """One question, its answer or None, and its line in the file, from 1."""

    question: str
    place: str | None
    line: int


@dataclass(frozen=True)
class Questions:
    r"""Questions and answers of one file.

    Example:
        A first line ``Where was Ada Lovelace born?\tLondon`` gives

        >>> questions.rows[0]
        Question(question='Where was Ada Lovelace born?', place='London', line=1)

    Attributes:
        path: Where they were read.
        rows: In the order of the file.
        sha256: Of the bytes of the file.
        notes: What was normalised and skipped, with counts, for the log.
        warnings: What looks like a mistake in the data.
    """

    path: Path
    rows: list[Question]
    sha256: str
    notes: list[str]
    warnings: list[str]


def with_equivalents(questions: Questions, vocab: CharVocab) -> Questions:
    """The questions with an equivalent for every character that the vocabulary lacks, where it has one."""
    rows = [replace(row, question=vocab.replace_unknown(row.question)) for row in questions.rows]
    return replace(questions, rows=rows)


def read_documents(path: str | Path, key: str = "data.corpus") -> Documents:
    """Reads a corpus of one document per line.

    Args:
        path: The file.
        key: The config key that named it, for messages.

    Raises:
        InputError: The file cannot be read, is not UTF-8 text, or has no document of 4 characters or more.
    """
    file = TextFile(path, key)
    lines: list[str] = []
    for number, raw in file.lines():
        line = file.tidy(raw, number, ZERO_WIDTH)
        if not line:
            file.counts["blank lines skipped"] += 1
        elif len(normalise(line)) < MIN_DOCUMENT:
            file.counts[SHORT] += 1
        else:
            file.counts[NORMALISED] += normalise(line) != line
            lines.append(line)
    if not lines:
        skipped = file.counts[SHORT]
        short = f", all {skipped} documents are shorter than {MIN_DOCUMENT} characters" if skipped else ""
        raise InputError(f"{key}={path}: 0 examples{short}; give one document per line")
    return Documents(
        path=file.path,
        lines=lines,
        text="".join(line + "\n" for line in lines),
        sha256=file.sha256,
        notes=file.notes,
    )


def read_questions(
    path: str | Path, places: Literal["required", "optional"] = "required", key: str = "data.train"
) -> Questions:
    """Reads questions and answers, one ``QUESTION<TAB>ANSWER`` per line.

    Args:
        path: The file.
        places: "optional" also takes a question without an answer, with or without the tab.
        key: The config key that named it, for messages.

    Raises:
        InputError: The file cannot be read, is not UTF-8 text, is empty, or has a line of another form.
    """
    file = TextFile(path, key)
    rows: list[Question] = []
    headers: list[str] = []
    for number, raw in file.lines():
        match [read_field(file, field, number) for field in raw.split("\t")]:
            case [""]:
                file.counts["blank lines skipped"] += 1
            case fields if not rows and HEADER_WORDS.issuperset(map(str.casefold, fields)):
                headers.append(f"{path}:{number}: skipped as a header: {' and '.join(fields)}")
            case [question, ""] if places == "optional" and question:
                rows.append(Question(question, None, number))
            case ["", _]:
                raise InputError(f"{path}:{number}: empty question; expected {RECORD}")
            case [_, ""]:
                raise InputError(f"{path}:{number}: empty answer; expected {RECORD}")
            case [question, place]:
                rows.append(Question(question, place, number))
            case [question] if places == "optional":
                rows.append(Question(question, None, number))
            case fields:
                raise InputError(f"{path}:{number}: {len(fields) - 1 or 'no'} tabs; expected {RECORD}")
    if not rows:
        raise InputError(f"{key}={path}: 0 examples; give one {RECORD} per line")
    repeated, warnings = _repetitions(file.path, rows)
    file.counts["questions repeated with the same answer"] += repeated
    return Questions(file.path, rows, file.sha256, file.notes, headers + warnings)


def check_lengths(questions: Questions, vocab: CharVocab | None, block_size: int) -> None:
    """Checks that ``question MASK place MASK`` fits the model.

    Args:
        questions: The questions to check; a missing place counts as empty.
        vocab: The allowed characters; None checks the length only: predicting drops the others.
        block_size: The longest sequence of the model, in characters.

    Raises:
        InputError: A row is too long or has a character outside the vocabulary.
    """
    for row in questions.rows:
        place = row.place or ""
        if len(row.question) + len(place) + 2 > block_size:
            raise InputError(
                f"{questions.path}:{row.line}: question of {len(row.question)} characters,"
                f" answer of {len(place)} and 2 MASK are longer than block_size={block_size};"
                " shorten them or raise block_size"
            )
        if vocab is not None:
            for character in row.question + place:
                if character not in vocab:
                    raise InputError(
                        f"{questions.path}:{row.line}: {describe(character)} is not in the vocabulary;"
                        " use the characters of the corpus"
                    )


def majority_answer(train: Questions) -> tuple[str, int]:
    """The most frequent place and its count; the first one in the file if several are equal."""
    counts = Counter(row.place for row in train.rows if row.place is not None)
    if not counts:
        raise InputError(f"{train.path}: no answers; expected {RECORD}")
    return counts.most_common(1)[0]


def read_field(file: TextFile, raw: str, number: int) -> str:
    """A normalised field, without the quotes that a CSV writer puts around it."""
    field = file.tidy(raw, number, INVISIBLE)
    if _QUOTED.fullmatch(field):
        file.counts["fields in double quotes"] += 1
        field = field[1:-1].replace('""', '"')
    elif field.startswith('"') and field.count('"') % 2:
        raise InputError(f"{file.path}:{number}: a double quote is not closed; remove it, or close it")
    normalised = normalise(field)
    file.counts["white space made one space"] += normalised != field.strip()
    return normalised


def _repetitions(path: Path, rows: list[Question]) -> tuple[int, list[str]]:
    """Counts repeated questions, and warns about those with different answers."""
    first: dict[str, Question] = {}
    repeated, warnings = 0, []
    for row in rows:
        earlier = first.setdefault(row.question, row)
        if earlier is row:
            continue
        if None in (earlier.place, row.place) or earlier.place == row.place:
            repeated += 1
            continue
        warnings.append(
            f"{path}:{row.line}: {row.question!r} has the answer {row.place!r}"
            f", but {earlier.place!r} on line {earlier.line}"
        )
    if len(warnings) > MAX_WARNINGS:
        more = len(warnings) - MAX_WARNINGS
        warnings[MAX_WARNINGS:] = [f"{path}: {more} more questions repeated with different answers"]
    return repeated, warnings
