"""The data of a run as a whole."""

import hashlib
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from birthplace_lm.config.schema import Data
from birthplace_lm.data.corpora.corpus import Corpus, check_data_hashes, data_root, read_corpus
from birthplace_lm.errors import CheckpointError, InputError

COURSE_DATA = os.environ.get("BIRTHPLACE_LM_COURSE_DATA", "")
DATA = Path(__file__).parents[3] / "data" / "biographies"
LINES = {
    "corpus.txt": "Ada. Born in Rome .\nBo. Born in Ur .\n",
    "train.tsv": "Where was Ada born?\tRome\n",
    "dev.tsv": "Where was Bo born?\tUr\n",
    "test.tsv": "Where was Cy born?\n",
}
# the corpus above has not every letter of the questions
LETTERS = "Where was Ada born? Cy\n"


def read(root: Any, block_size: int = 128, **settings: Any) -> Corpus:
    files = {"corpus": "corpus.txt", "train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
    return read_corpus(Data(root=None if root is None else str(root), **(files | settings)), block_size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in LINES.items():
        (tmp_path / name).write_text(text + LETTERS * (name == "corpus.txt"), encoding="utf-8")
    return tmp_path


def test_the_embedded_corpus() -> None:
    corpus = read(None)
    text = (DATA / "corpus.txt").read_text(encoding="utf-8")
    assert corpus.notes == [
        f"{len(text)} characters, {len(set(text)) + 2} symbols; 420 documents,"
        " 210 train, 140 dev, 70 test questions"
    ]
    assert corpus.warnings == []
    assert corpus.vocab.symbols == ("\u25a1", "\u2047", *sorted(set(text)))
    assert "".join(line + "\n" for line in corpus.documents.lines) == text
    for key, name in [
        ("corpus", "corpus.txt"),
        ("train", "train.tsv"),
        ("dev", "dev.tsv"),
        ("test", "test.tsv"),
    ]:
        assert corpus.sha256[key] == hashlib.sha256((DATA / name).read_bytes()).hexdigest()
    rows = [line.split("\t") for line in (DATA / "train.tsv").read_text(encoding="utf-8").splitlines()]
    assert [[row.question, row.place] for row in corpus.train.rows] == rows
    assert corpus.majority == Counter(place for _, place in rows).most_common(1)[0][0]


@pytest.mark.skipif(not COURSE_DATA, reason="BIRTHPLACE_LM_COURSE_DATA is not set")
def test_the_corpus_of_the_course() -> None:
    files: dict[str, Any] = {
        "corpus": "wiki.txt",
        "train": "birth_places_train.tsv",
        "dev": "birth_dev.tsv",
        "test": "birth_test_inputs.tsv",
    }
    corpus = read(COURSE_DATA, **files, holdout_size=200)
    assert corpus.notes[0].startswith("418352 characters, 256 symbols")
    assert corpus.majority == "London"
    test = corpus.test
    assert test is not None
    assert [len(rows) for rows in (corpus.train.rows, corpus.holdout, corpus.dev.rows, test.rows)] == [
        1800,
        200,
        500,
        437,
    ]
    assert sum(row.place == "London" for row in corpus.dev.rows) == 25
    assert sum(row.place == "London" for row in (*corpus.train.rows, *corpus.holdout)) == 91


@pytest.mark.parametrize("count", [0, 1, 7, 30, 140, 209])
def test_holdout_is_spread_over_the_train_questions(count: int) -> None:
    everything = read(None).train.rows
    corpus = read(None, holdout_size=count)
    assert len(corpus.holdout) == count
    assert sorted([*corpus.train.rows, *corpus.holdout], key=lambda row: row.line) == everything
    assert corpus.train.rows == [row for row in everything if row not in corpus.holdout]
    lines = [row.line for row in corpus.holdout]
    gaps = [after - before for before, after in pairwise([*lines, 211])]
    assert all(210 // count <= gap <= 210 // count + 1 for gap in gaps)
    assert corpus.majority == Counter(row.place for row in corpus.train.rows).most_common(1)[0][0]
    assert corpus.holdout == read(None, holdout_size=count).holdout


@pytest.mark.parametrize("count", [-1, 210, 10**6])
def test_holdout_out_of_range(count: int) -> None:
    with pytest.raises(InputError, match=f"data.holdout_size={count}: must be from 0 to 209"):
        read(None, holdout_size=count)


@pytest.mark.parametrize("root", ["nowhere", "train.tsv", "~no such user/data", "\0", "x" * 300])
def test_missing_root(folder: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the home of a user who does not exist was a RuntimeError."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"data\.root=.*: not a directory; .*corpus\.txt"):
        read(root)


def test_root_may_begin_with_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert data_root(Data(root=f"~/{folder.name}")) == folder
    assert len(read(f"~/{folder.name}").train.rows) == 1


@pytest.mark.parametrize("key", ["corpus", "train", "dev", "test"])
def test_missing_file(folder: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"data\.{key}=.*gone\.txt: cannot read"):
        read(folder, **cast(dict[str, Any], {key: "gone.txt"}))


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
@pytest.mark.parametrize(
    ("line", "where"), [("Who is Zoë?\tRome\n", "'Z' U+005A"), ("Ada?\tPariš\n", "'P' U+0050")]
)
def test_a_character_outside_the_vocabulary(folder: Path, name: str, line: str, where: str) -> None:
    (folder / name).write_text(LINES[name] + "\n" + line, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(folder)
    assert str(error.value).startswith(f"{folder / name}:3: ")
    assert where in str(error.value)


def test_test_questions_may_have_any_character_and_no_place(folder: Path) -> None:
    (folder / "test.tsv").write_text("Where was Zoë Ж born?\n", encoding="utf-8")
    test = read(folder).test
    assert test is not None
    assert [(row.question, row.place) for row in test.rows] == [("Where was Zoë Ж born?", None)]
    without = read(folder, test=None)
    assert without.test is None
    assert set(without.sha256) == {"corpus", "train", "dev"}
    assert without.notes[0].endswith("1 train, 1 dev, 0 test questions")


@pytest.mark.parametrize(("name", "length"), [("train.tsv", 19 + 4), ("dev.tsv", 18 + 2), ("test.tsv", 18)])
def test_questions_fit_the_block(folder: Path, name: str, length: int) -> None:
    """question MASK place MASK is as long as the block, or else one too long."""
    (folder / name).write_text(LINES[name].replace("Where was ", "Where was " + "n" * 100), encoding="utf-8")
    read(folder, block_size=length + 100 + 2)
    with pytest.raises(InputError, match=rf"{name}:1: question of .* longer than block_size={length + 101}"):
        read(folder, block_size=length + 100 + 1)


def test_repeated_questions_in_test_and_holdout_are_counted(folder: Path) -> None:
    """Bug: only dev was compared with train: a held-out question that train repeats was not reported."""
    (folder / "train.tsv").write_text(LINES["train.tsv"] * 2 + "Where was Bo born?\tUr\n", encoding="utf-8")
    (folder / "dev.tsv").write_text("Where was Cy born?\tUr\n", encoding="utf-8")
    (folder / "test.tsv").write_text("Where was Bo born?\n", encoding="utf-8")
    repeated = [w for w in read(folder, holdout_size=1).warnings if "also in" in w]
    assert "test.tsv:1: 1 of 1 questions are also in" in repeated[0]
    assert "train.tsv:1: 1 of 1 held-out questions are also in" in repeated[1]
    assert "(this one on line 2)" in repeated[1]
    assert not [w for w in read(folder, test=None).warnings if "also in" in w]


def test_notes_and_warnings_name_their_file_once(folder: Path) -> None:
    """Bug: notes began with the name of the file twice."""
    (folder / "dev.tsv").write_text(LINES["dev.tsv"] + "\n" + LINES["train.tsv"], encoding="utf-8")
    corpus = read(folder)
    assert corpus.notes[1:] == [f"{folder / 'dev.tsv'}: blank lines skipped: 1"]
    assert len(corpus.warnings) == 1
    assert corpus.warnings[0].startswith(f"{folder / 'dev.tsv'}:3: 1 of 2 questions are also in")


def test_names_the_file_that_has_changed() -> None:
    check_data_hashes({"corpus": "aa", "train": "bb"}, {"corpus": "aa", "train": "bb"})
    with pytest.raises(CheckpointError, match=r"data.train: .* was bb and is cc"):
        check_data_hashes({"corpus": "aa", "train": "bb"}, {"corpus": "aa", "train": "cc"})
