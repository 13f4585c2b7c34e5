"""The reader of the course format: the real numbers, and the bad-input table as far as data files go."""

import csv
import gzip
import hashlib
import io
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data.corpora import qa_files as course
from birthplace_lm.data.corpora.consistency import check_overlap
from birthplace_lm.data.corpora.qa_files import Question, Questions, read_documents, read_questions
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import InputError

COURSE_DATA = os.environ.get("BIRTHPLACE_LM_COURSE_DATA", "")
ADA = "Where was Ada Lovelace born?\tLondon\n"
ALAN = "Where was Alan Turing born?\tLondon\n"
needs_course_data = pytest.mark.skipif(not COURSE_DATA, reason="BIRTHPLACE_LM_COURSE_DATA is not set")


def write(folder: Path, content: str | bytes, name: str = "train.tsv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def questions(folder: Path, content: str, name: str = "train.tsv") -> Questions:
    return read_questions(write(folder, content, name), places="optional")


def notes(read: Questions | course.Documents) -> dict[str, int]:
    return {label: int(count) for _, label, count in (note.rsplit(": ", 2) for note in read.notes)}


def test_questions_of_a_plain_file(tmp_path: Path) -> None:
    path = write(tmp_path, ADA + "Where was Zoë born?\tNew York\n")
    read = read_questions(path)
    assert read.rows == [
        Question("Where was Ada Lovelace born?", "London", 1),
        Question("Where was Zoë born?", "New York", 2),
    ]
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (read.path, read.notes, read.warnings) == (path, [], [])


def test_documents_of_a_plain_file(tmp_path: Path) -> None:
    path = write(tmp_path, "Ada. Born in London .\nAlan. Born in London .\n")
    read = read_documents(path)
    assert read.lines == ["Ada. Born in London .", "Alan. Born in London ."]
    assert read.text == path.read_text()
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.notes == []


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        pytest.param(
            ADA + "Where was A born?\n", ":2:", "no tabs; expected 'QUESTION<TAB>ANSWER'", id="no tab"
        ),
        pytest.param("\n" + ADA + "a\tb\tc\n", ":3:", "2 tabs; expected", id="two tabs"),
        pytest.param("a\tb\tc\td\n", ":1:", "3 tabs; expected", id="three tabs"),
        pytest.param("\tLondon\n", ":1:", "empty question", id="empty question"),
        pytest.param(" \t \n", ":1:", "empty question", id="only a tab"),
        pytest.param(ADA + "Where was A born?\t \n", ":2:", "empty answer", id="empty answer"),
        pytest.param(ADA + "A\t\u200b\u200e\n", ":2:", "empty answer", id="invisible place"),
        pytest.param("Where was \u25a1 born?\tB\n", ":1:", "U+25A1 is reserved for PAD", id="PAD"),
        pytest.param(ADA + "A\tB\u2047\n", ":2:", "U+2047 is reserved for MASK", id="MASK"),
        pytest.param(ADA.encode("utf-16"), ":1:1:", "not UTF-8", id="UTF-16 with BOM"),
        pytest.param(ADA.encode("utf-16-le"), ":1:2:", "binary data (byte 0x00)", id="UTF-16 without BOM"),
        pytest.param(ADA + "A\t", ":2:", "empty answer", id="empty place at the end"),
        pytest.param("Zo\xeb\tParis\n".encode("latin-1"), ":1:3:", "not UTF-8 (byte 0xeb)", id="Latin-1"),
        pytest.param(b"A\tB\nZo\xc3", ":2:3:", "not UTF-8 (byte 0xc3)", id="half a character at the end"),
        pytest.param(b"\xef\xbb\xbfA\tB\nA\0\tB\n", ":2:2:", "binary data (byte 0x00)", id="NUL"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ":1:1:", "not UTF-8 (byte 0x89)", id="PNG"),
        pytest.param(gzip.compress(ADA.encode()), ":1:2:", "not UTF-8 (byte 0x8b)", id="gzip"),
        pytest.param(b"A\t\x1b[31mB\n", ":1:3:", "binary data (byte 0x1b)", id="terminal escape"),
        pytest.param(ADA + 'Where was A born?\t"B\n', ":2:", "double quote is not closed", id="open quote"),
        pytest.param("A\tO\x92Neil\n", ":1:", "U+0092 is a control character", id="Windows-1252 as Latin-1"),
        pytest.param("A\tOrl\ufffdans\n", ":1:", "U+FFFD marks a character that", id="lost character"),
        pytest.param("A\tOrléans\n".encode("cp1252"), ":1:6:", "not UTF-8", id="Windows-1252"),
        pytest.param("A\t" + "B" * 100_000, ":1:", "longer than 100,000 bytes", id="long line"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, content: str | bytes, where: str, what: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_questions(path)
    message = str(error.value)
    assert message.startswith(f"{path}{where} ")
    assert what in message
    assert "\n" not in message
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        pytest.param("Ada .\nA \u2047 b\n", ":2:", "U+2047 is reserved for MASK", id="MASK"),
        pytest.param("Ada .\nA \u25a1 b\n", ":2:", "U+25A1 is reserved for PAD", id="PAD"),
        pytest.param("Ada .\nZo\xeb\n".encode("latin-1"), ":2:3:", "not UTF-8", id="Latin-1"),
    ],
)
def test_bad_line_of_a_corpus_is_named(tmp_path: Path, content: str | bytes, where: str, what: str) -> None:
    path = write(tmp_path, content, "wiki.txt")
    with pytest.raises(InputError) as error:
        read_documents(path)
    assert str(error.value).startswith(f"{path}{where} ")
    assert what in str(error.value)


@pytest.mark.parametrize("content", ["", "\n", "\r\n \r\n\u200b\n", "\ufeff"])
def test_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=r"^data.dev=.*train.tsv: 0 examples; give one"):
        read_questions(path, key="data.dev")
    with pytest.raises(InputError, match=r"^data.corpus=.*train.tsv: 0 examples; give one"):
        read_documents(path)


@pytest.mark.parametrize(
    ("content", "counted"),
    [
        (ADA + ALAN, {}),
        (ADA + "\n \n" + ALAN, {"blank lines skipped": 2}),
        ((ADA + ALAN).replace("\n", "\r\n"), {"line ends of CR or CRLF": 2}),
        ((ADA + ALAN).replace("\n", "\r"), {"line ends of CR or CRLF": 2}),
        ("\ufeff" + ADA + ALAN, {"byte-order mark removed": 1}),
        ((ADA + ALAN).rstrip(), {"no newline at the end": 1}),
        (f"  {ADA.rstrip()} \n{ALAN}", {"stripped of outer spaces": 2}),
        (ADA.replace("London", "Lon\u200bdon\u200e") + ALAN, {"stripped of invisible characters": 1}),
    ],
)
def test_untidy_file_reads_as_the_tidy_one(tmp_path: Path, content: str, counted: dict[str, int]) -> None:
    tidy = read_questions(write(tmp_path, ADA + ALAN))
    read = read_questions(write(tmp_path, content))
    assert [(row.question, row.place) for row in read.rows] == [
        (row.question, row.place) for row in tidy.rows
    ]
    assert notes(read) == counted


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    assert [row.line for row in questions(tmp_path, "\n" + ADA + "\r\n\r" + ALAN).rows] == [2, 5]


def test_accents_are_composed_and_counted(tmp_path: Path) -> None:
    content = "Zoë. Born in Orléans .\nAda. Born in London .\n"
    read = read_documents(write(tmp_path, unicodedata.normalize("NFD", content)))
    assert read.text == content
    assert notes(read) == {"normalised to NFC": 1}
    row = questions(tmp_path, unicodedata.normalize("NFD", "Where was Zoë born?\tOrléans")).rows[0]
    assert (row.question, row.place) == ("Where was Zoë born?", "Orléans")


def test_short_documents_are_skipped(tmp_path: Path) -> None:
    read = read_documents(write(tmp_path, "Ada .\n\nBo\nAlan .\u200e"))
    assert read.lines == ["Ada .", "Alan .\u200e"]
    assert read.text == "Ada .\nAlan .\u200e\n"
    assert notes(read) == {
        "blank lines skipped": 1,
        "documents shorter than 4 characters skipped": 1,
        "no newline at the end": 1,
        "read with single plain spaces and without invisible characters": 1,
    }


def test_corpus_of_short_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 examples, all 2 documents are shorter than 4 characters"):
        read_documents(write(tmp_path, "Ada\nBo\n"))


def test_question_without_answer_only_when_predicting(tmp_path: Path) -> None:
    path = write(tmp_path, ADA + "Where was Bo born?\n")
    read = read_questions(path, places="optional")
    assert [row.place for row in read.rows] == ["London", None]
    with pytest.raises(InputError, match=":2: no tabs"):
        read_questions(path, places="required")
    path.write_text(ADA + "Where was Bo born?\t\n")  # as a table program writes it
    assert read_questions(path, places="optional").rows == read.rows
    with pytest.raises(InputError, match=":2: empty answer"):
        read_questions(path, places="required")


def test_repeated_questions_are_counted_or_warned_of(tmp_path: Path) -> None:
    read = questions(tmp_path, ADA + ALAN + ADA + ALAN.replace("London", "Leeds"))
    assert len(read.rows) == 4
    assert notes(read) == {"questions repeated with the same answer": 1}
    expected = "'Where was Alan Turing born?' has the answer 'Leeds', but 'London' on line 2"
    assert read.warnings == [f"{read.path}:4: {expected}"]


def test_many_contradictions_are_summed_up(tmp_path: Path) -> None:
    read = questions(tmp_path, "".join(f"Where?\tPlace {i}\n" for i in range(100)))
    assert len(read.warnings) == 11
    assert read.warnings[-1].endswith("89 more questions repeated with different answers")


def test_overlap_of_train_and_dev_is_counted(tmp_path: Path) -> None:
    train = questions(tmp_path, ADA + ALAN + ALAN)
    dev = questions(tmp_path, "Where was Bo born?\tRome\n" + ALAN + ADA, "dev.tsv")
    (warning,) = check_overlap(train, dev)
    assert warning.startswith(f"{dev.path}:2: 2 of 3 questions are also in {train.path} (this one on line 2)")
    assert check_overlap(train, questions(tmp_path, "Where was Bo born?\n", "dev.tsv")) == []


def test_length_is_checked_with_both_masks(tmp_path: Path) -> None:
    read = questions(tmp_path, "\nabcd\txyz\n")
    vocab = CharVocab.from_text("abcdxyz")
    course.check_lengths(read, vocab, block_size=9)
    with pytest.raises(
        InputError, match=r"train.tsv:2: question of 4 characters, answer of 3 .*block_size=8;"
    ):
        course.check_lengths(read, vocab, block_size=8)


def test_character_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    read = questions(tmp_path, "abc\tabc\nabc\tßa\n")
    with pytest.raises(InputError, match=r"train.tsv:2: 'ß' U\+00DF is not in the vocabulary"):
        course.check_lengths(read, CharVocab.from_text("abc"), block_size=99)
    course.check_lengths(read, None, block_size=99)


def test_majority_answer_prefers_the_first_of_equals(tmp_path: Path) -> None:
    assert course.majority_answer(questions(tmp_path, "a\tRome\nb\tBonn\nc\tBonn\nd\tRome\n")) == ("Rome", 2)
    assert course.majority_answer(questions(tmp_path, "a\tRome\nb\tBonn\nc\tBonn\nd\n")) == ("Bonn", 2)
    with pytest.raises(InputError, match="no answers"):
        course.majority_answer(questions(tmp_path, "a\nb\n"))


def test_any_white_space_is_one_space(tmp_path: Path) -> None:
    """Bug: with U+00A0 for spaces a model answered 41 of 140 questions instead of 134, without a word."""
    spaced = ADA.replace(" ", "\u00a0") + ALAN.replace(" ", " \u2009\u3000\x85 ").replace(
        "London", "New\u2028York"
    )
    read = questions(tmp_path, spaced)
    expected = [ADA.split("\t")[0], ALAN.split("\t")[0]]
    assert [row.question for row in read.rows] == expected
    assert [row.place for row in read.rows] == ["London", "New York"]
    assert notes(read) == {"white space made one space": 3}
    documents = read_documents(write(tmp_path, "Ada\u00a0Bo.  Born\u3000in Rome\u00ad .\n"))
    assert documents.training_lines == ["Ada Bo. Born in Rome ."]
    assert documents.text == "Ada\u00a0Bo.  Born\u3000in Rome\u00ad .\n"  # what the vocabulary is made of


def test_a_document_of_spaces_is_short(tmp_path: Path) -> None:
    read = read_documents(write(tmp_path, "a      b\nAda .\n"))
    assert read.training_lines == ["Ada ."]


def test_quotes_of_a_csv_writer_are_removed(tmp_path: Path) -> None:
    """Bug: with every field in quotes a model answered none of 140 questions."""
    buffer = io.StringIO()
    rows = [
        ("Where was Ada born?", "London"),
        ('Where was Al "Bo" Cy born?', 'the "Ur"'),
        ('"A" or "B"?', "Bonn"),
    ]
    csv.writer(buffer, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(rows)
    read = questions(tmp_path, buffer.getvalue())
    assert [(row.question, row.place) for row in read.rows] == rows
    assert notes(read)["fields in double quotes"] == 6
    plain = questions(tmp_path, 'The "A" of B?\tin "Rome"\n')
    assert (plain.rows[0].question, plain.rows[0].place, plain.notes) == ('The "A" of B?', 'in "Rome"', [])


@pytest.mark.parametrize(
    "header", ["question\tplace", "Question\tAnswer", '"question"\t"birthplace"', "Question"]
)
def test_a_header_is_no_question(tmp_path: Path, header: str) -> None:
    """Bug: a header counted as a question, and made a predictions file one line too long."""
    read = questions(tmp_path, f"\n{header}\n{ADA}")
    assert [row.line for row in read.rows] == [3]
    assert read.warnings == [
        f"{read.path}:2: skipped as a header: " + header.replace('"', "").replace("\t", " and ")
    ]
    assert len(questions(tmp_path, f"{ADA}{header}\n").rows) == 2  # only the first line can be one


@given(st.binary(max_size=60) | st.text("aé\t\n\r\ufeff\u0301 \u25a1", max_size=40).map(str.encode))
def test_any_bytes_give_questions_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        read = read_questions(path, places="optional")
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017  (either outcome is right)
    else:
        assert read.rows
        assert all(row.question and row.place != "" for row in read.rows)


@needs_course_data
def test_numbers_of_the_real_corpus() -> None:
    path = Path(COURSE_DATA) / "wiki.txt"
    read = read_documents(path)
    assert read.text == path.read_text(encoding="utf-8")
    assert len(read.text) == 418_352
    assert len(CharVocab.from_text(read.text)) == 256
    assert len(read.lines) == 2937
    assert read.notes == [f"{path}: read with single plain spaces and without invisible characters: 15"]


@needs_course_data
def test_numbers_of_the_real_questions() -> None:
    root = Path(COURSE_DATA)
    train = read_questions(root / "birth_places_train.tsv")
    dev = read_questions(root / "birth_dev.tsv", key="data.dev")
    test = read_questions(root / "birth_test_inputs.tsv", places="optional", key="data.test")
    assert [len(read.rows) for read in (train, dev, test)] == [2000, 500, 437]
    assert [read.notes for read in (train, dev, test)] == [[], [], []]
    assert [len(read.warnings) for read in (train, dev, test)] == [9, 0, 0]
    assert course.majority_answer(train) == ("London", 91)
    assert sum(row.place == "London" for row in dev.rows) == 25
    assert "1 of 500 questions" in check_overlap(train, dev)[0]

    documents = read_documents(root / "wiki.txt")
    vocab = CharVocab.from_text(documents.text)
    for read in (train, dev, test):
        course.check_lengths(read, vocab, block_size=128)
    name = QuestionTemplate.parse("Where was {name} born?").name_in(dev.rows[0].question)
    assert name is not None
    assert documents.lines[2000].startswith(f"{name}. ")
