"""Warnings about files that can be read and do not fit together: wording, people, answers and characters.

Each function `check_...` returns the warnings: one or two, with a count and the first example, or none.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from birthplace_lm.data.corpora.qa_files import Documents, Question, Questions
from birthplace_lm.data.questions import QuestionTemplate, answer_room, normalise
from birthplace_lm.data.vocab import CharVocab, describe

MAX_MISSING_PLACES = 0.1  # of a file; a document may spell the place in another way
# "J. R. Smith. " ends after Smith, "St. Ives. " after Ives: an initial or a form of address does not end it.
# "Malcolm X. Malcolm X was born" and "Wham!. Wham! are" repeat the name after it.
_TITLE = re.compile(
    r"^(?:(\w\w[^.]*)\. (?=\1(?!\w))"
    r"|.*?(?:\w\w|[).'\"])(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bProf)(?<!\bRev)(?<!\bGen)\. )"
)
MAX_SEARCHED = 1000  # names or answers, evenly spaced; to search for all of a large file takes too long


def check_overlap(train: Questions, other: Questions, what: str = "questions") -> list[str]:
    """Warns if questions of train are in another split, where they measure memory of the answer."""
    train_lines = {row.question: row.line for row in reversed(train.rows)}
    shared = [row for row in other.rows if row.question in train_lines]
    if not shared:
        return []
    first = shared[0]
    return [
        f"{other.path}:{first.line}: {len(shared)} of {len(other.rows)} {what} are also in {train.path}"
        f" (this one on line {train_lines[first.question]}): their answers are trained on"
    ]


def check_room(questions: Questions, block_size: int) -> list[str]:
    """Warns about questions that lose their beginning when they are asked, and about too long answers."""
    room = answer_room(block_size)
    cut = [row for row in questions.rows if len(row.question) + 1 > block_size - room]
    long = [row for row in questions.rows if len(row.place or "") > room]
    total = len(questions.rows)
    what = f"questions lose their beginning: {room} characters of block_size={block_size} are for the answer"
    return [
        *_warning(questions.path, cut, total, what, [row.question for row in cut]),
        *_warning(
            questions.path,
            long,
            total,
            f"answers are longer than the {room} characters that the model writes at most, so never right",
            [row.place for row in long],
        ),
    ]


def check_people(questions: Questions, documents: Documents, template: QuestionTemplate) -> list[str]:
    """Warns about questions whose person is nowhere in the corpus; looks within lines for `MAX_SEARCHED`."""
    beginnings = {title for line in documents.training_lines for title in possible_titles(line)}
    rows = [row for row in questions.rows if template.name_or_text(row.question) not in beginnings]
    searched = rows[:: max(1, math.ceil(len(rows) / MAX_SEARCHED))]
    text = "\n".join(documents.training_lines)
    missing = [row for row in searched if template.name_or_text(row.question) not in text]
    total = len(questions.rows) - len(rows) + len(searched)  # those that were looked for
    what = f"questions are about nobody who has a line in {documents.path}"
    return _warning(questions.path, missing, total, what, [row.question for row in missing])


def check_places(questions: Questions, documents: Documents) -> list[str]:
    """Warns if over `MAX_MISSING_PLACES` of the answers do not occur in the corpus; tries `MAX_SEARCHED`."""
    places = [*dict.fromkeys(row.place for row in questions.rows if row.place is not None)]
    tried = {*places[:: max(1, math.ceil(len(places) / MAX_SEARCHED))]}
    text = "\n".join(documents.training_lines)
    absent = {place for place in tried if place not in text}
    rows = [row for row in questions.rows if row.place in tried]
    missing = [row for row in rows if row.place in absent]
    if len(missing) <= MAX_MISSING_PLACES * len(rows):
        return []
    what = f"answers do not occur in {documents.path}"
    return _warning(questions.path, missing, len(rows), what, [row.place for row in missing])


def check_spelling(train: Questions, dev: Questions) -> list[str]:
    """Warns about answers of dev that train spells with other case or punctuation: they never match."""
    places = {row.place for row in train.rows if row.place}
    spelling = {_letters(place): place for place in places}
    others = [
        row for row in dev.rows if row.place and row.place not in places and _letters(row.place) in spelling
    ]
    examples = [f"{row.place!r} for {spelling[_letters(row.place or '')]!r}" for row in others]
    what = f"answers are spelt differently in {train.path}"
    return _warning(dev.path, others, len(dev.rows), what, examples)


def check_form(questions: Questions, template: QuestionTemplate) -> list[str]:
    """Warns about questions that do not fit the template."""
    others = [row for row in questions.rows if template.name_in(row.question) is None]
    what = f"questions are not {template.text!r}"
    return _warning(questions.path, others, len(questions.rows), what, [row.question for row in others])


def check_characters(questions: Questions, vocab: CharVocab) -> list[str]:
    """Warns about questions with characters that the model does not know: they are dropped."""
    unknown = {row: "".join(c for c in row.question if c not in vocab) for row in questions.rows}
    rows = [row for row, characters in unknown.items() if characters]
    what = "questions have characters that the model does not know and that are dropped"
    examples = [", ".join(map(describe, dict.fromkeys(unknown[row]))) for row in rows]
    return _warning(questions.path, rows, len(questions.rows), what, examples)


def title_of(line: str, names: Collection[str] = ()) -> str:
    """The title of a line, the name that it begins with and ". "; empty if it has none.

    It is the longest of `names` that the line begins with, or else what looks like a name.
    """
    if (name := owner(line, names)) is not None:
        return f"{name}. "
    match = _TITLE.match(line)
    return match[0] if match else ""


def owner(line: str, names: Collection[str]) -> str | None:
    """The name that a line begins with, followed by a full stop; the longest one."""
    return max((title for title in possible_titles(line) if title in names), key=len, default=None)


def possible_titles(line: str) -> Iterator[str]:
    """The text in front of every full stop: "J. R. Smith. Born" gives "J", "J. R" and "J. R. Smith"."""
    end = -1
    while (end := line.find(". ", end + 1)) >= 0:
        yield line[:end]


def _letters(place: str) -> str:
    return "".join(filter(str.isalnum, normalise(place).casefold()))


def _warning(
    path: Path, rows: Sequence[Question], total: int, what: str, examples: Sequence[str | None]
) -> list[str]:
    return [f"{path}:{rows[0].line}: {len(rows)} of {total} {what}, e.g. {examples[0]}"] if rows else []
