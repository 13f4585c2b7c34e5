"""Files that can be read and do not fit together are warned about, with counts."""

import re
from pathlib import Path
from typing import Any

import pytest

from birthplace_lm.config.schema import Data
from birthplace_lm.data.corpora.consistency import check_characters, check_form, check_places, check_room
from birthplace_lm.data.corpora.corpus import embedded_corpus_dir, read_corpus
from birthplace_lm.data.corpora.qa_files import read_documents, read_questions, with_equivalents
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import InputError

DEFAULT = QuestionTemplate.parse(Data().question)
EMBEDDED = {file.name: file.read_text(encoding="utf-8") for file in embedded_corpus_dir().iterdir()}


def warnings(folder: Path, question: str = DEFAULT.text, **changed: str) -> list[str]:
    """Of the embedded corpus with other contents in some of its files."""
    for name, text in EMBEDDED.items():
        (folder / name).write_text(changed.get(name.split(".")[0], text), encoding="utf-8")
    data: Any = Data(str(folder), "corpus.txt", "train.tsv", "dev.tsv", "test.tsv", question=question)
    return [warning.replace(f"{folder}/", "") for warning in read_corpus(data, 128).warnings]


def replaced(pattern: str, new: str, count: int = 0) -> str:
    return re.sub(pattern, new, EMBEDDED["dev.tsv"], count=count, flags=re.MULTILINE)


def test_the_embedded_corpus_fits_together(tmp_path: Path) -> None:
    assert warnings(tmp_path) == []


def test_people_without_a_line(tmp_path: Path) -> None:
    """Bug: of 140 people of dev 139 had no line in the corpus, and nothing was said."""
    first, *others = EMBEDDED["dev.tsv"].splitlines(keepends=True)
    dev = first + "".join(line.replace(" born?", " Li born?") for line in others)
    (warning,) = warnings(tmp_path, dev=dev)
    assert warning.startswith(
        "dev.tsv:2: 139 of 140 questions are about nobody who has a line in corpus.txt, e.g. Where was "
    )
    assert warnings(tmp_path, dev=dev[:-1], test=dev.replace(" born?", " Bo born?"))[-1].startswith(
        "test.tsv:1: 140 of 140"
    )


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_questions_of_another_wording_are_refused(tmp_path: Path, name: str) -> None:
    """Bug: a corpus with questions of another wording trained for nothing, without a word: 6 of 140 right."""
    lines = EMBEDDED[f"{name}.tsv"].splitlines(keepends=True)
    lines[1:3] = [re.sub("Where was (.+) born", r"Which town is \1 from", line) for line in lines[1:3]]
    with pytest.raises(InputError) as error:
        warnings(tmp_path, **{name: "".join(lines)})
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path}/{name}.tsv:2: 2 of {len(lines)} questions are not 'Where was {{name}} born?', e.g. Which"
    )
    assert message.endswith("from?; correct them, or give their wording as data.question")


def test_all_files_may_have_another_wording(tmp_path: Path) -> None:
    changed = {
        name: re.sub(r"Where was (.+) born\?", r"Which town is \1 from?", EMBEDDED[f"{name}.tsv"])
        for name in ("train", "dev", "test")
    }
    assert warnings(tmp_path, "Which town is {name} from?", **changed) == []
    with pytest.raises(InputError, match=r"train.tsv:1: 210 of 210 questions are not 'Where was \{name\}"):
        warnings(tmp_path, **changed)


def test_a_non_breaking_space_in_the_corpus_is_a_space(tmp_path: Path) -> None:
    assert warnings(tmp_path, corpus=EMBEDDED["corpus.txt"].replace(" ", "\u00a0")) == []
    assert (
        warnings(tmp_path, corpus=EMBEDDED["corpus.txt"].replace(". ", ".  ").replace("a", "a\u00ad")) == []
    )


@pytest.mark.parametrize("end", [".", "?", "-"])
def test_places_that_are_spelt_differently(tmp_path: Path, end: str) -> None:
    messages = warnings(tmp_path, dev=replaced(r"$", end).removesuffix(end))
    what = "of 140 answers are spelt differently in train.tsv, e.g."
    assert re.fullmatch(rf"dev.tsv:1: \d+ {what} '\w+{re.escape(end)}' for '\w+'", messages[0])


def test_places_of_another_case(tmp_path: Path) -> None:
    rows = [line.split("\t") for line in EMBEDDED["dev.tsv"].splitlines()]
    dev = "".join(f"{question}\t{place.lower()}\n" for question, place in rows)
    spelling, places = warnings(tmp_path, dev=dev)
    assert "answers are spelt differently in train.tsv, e.g. " in spelling
    assert "of 140 answers do not occur in corpus.txt, e.g. " in places


def test_of_many_different_answers_a_thousand_are_tried(tmp_path: Path) -> None:
    """Bug: the time to search for all answers grew with the square of the size of the files."""
    lines = [f"Who is {i}?\tPlace {i % 5000}" for i in range(10_000)]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    (tmp_path / "corpus.txt").write_text("\n".join(f"Ada. Place {5 * i} ." for i in range(500)))
    questions, documents = read_questions(tmp_path / "train.tsv"), read_documents(tmp_path / "corpus.txt")
    (warning,) = check_places(questions, documents)
    assert ":2501: 1000 of 2000 answers do not occur" in warning


def test_characters_that_the_model_does_not_know(tmp_path: Path) -> None:
    test = "Where was Ж Li born?\n" + EMBEDDED["test.tsv"]
    people, characters = warnings(tmp_path, test=test)
    assert people.startswith("test.tsv:1: 1 of 71 questions are about nobody")
    assert characters == (
        "test.tsv:1: 1 of 71 questions have characters that the model does not know and that are dropped,"
        " e.g. 'Ж' U+0416"
    )


def test_typographic_characters_are_read_as_the_plain_ones(tmp_path: Path) -> None:
    vocab = CharVocab.from_text("Where was O'Neil-B born?")
    (tmp_path / "q.tsv").write_text("Where was O\u2019Neil\u2013B born\uff1f\n", encoding="utf-8")
    read = read_questions(tmp_path / "q.tsv", "optional")
    plain = with_equivalents(read, vocab)
    assert check_characters(plain, vocab) == check_form(plain, DEFAULT) == []
    assert plain.rows[0].question == "Where was O'Neil-B born?"
    curly = CharVocab.from_text("O\u2019N")
    assert curly.replace_unknown("O'N") == "O\u2019N"
    assert curly.replace_unknown("ßO\u2047") == "ßO\u2047"


def test_a_file_with_commas_for_tabs_is_not_of_the_form(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("Where was Ada born?,London\nWhere was Bo born?\n", encoding="utf-8")
    (warning,) = check_form(read_questions(tmp_path / "q.tsv", "optional"), DEFAULT)
    assert ":1: 1 of 2 questions are not 'Where was {name} born?', e.g. Where was Ada born?,London" in warning


def test_questions_and_answers_without_room(tmp_path: Path) -> None:
    """Bug: a question fitted the block and lost its beginning, or a place was longer than any answer."""
    (tmp_path / "train.tsv").write_text(f"{'q' * 95}\t{'p' * 32}\n{'q' * 96}\tp\nq\t{'p' * 33}\n")
    questions = read_questions(tmp_path / "train.tsv")
    cut, long = check_room(questions, block_size=128)
    assert ":2: 1 of 3 questions lose their beginning: 32 characters of block_size=128 are for the" in cut
    assert ":3: 1 of 3 answers are longer than the 32 characters that the model writes at most" in long
    assert len(check_room(questions, block_size=129)) == 1
