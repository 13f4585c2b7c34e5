"""Corpora with people left out, or with other places."""

from pathlib import Path
from typing import Any

import pytest
from stage import run

from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.corpora.people import closest_people
from birthplace_lm.errors import InputError
from birthplace_lm.runs.identity import config_hash, hashed_config, with_inputs

FILES = {
    "corpus.txt": "Ada Bo. Ada Bo lived in Romeo and was born in Rome . She left Rome .\n"
    "Ada Bo Cy. Born in Oslo .\nEve Fo. Born in Lima .\n",
    "train.tsv": "Where was Ada Bo born?\tRome\n",
    "dev.tsv": "Where was Ada Bo Cy born?\tOslo\n",
    "test.tsv": "Where was Eve Fo born?\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def corpus_of(folder: Path, *overrides: str) -> Corpus:
    config = compose([f"data.root={folder}", *overrides])
    return read_corpus(config.data, config.model.block_size)


@pytest.mark.parametrize(
    ("split", "left"),
    [("dev", ["Ada Bo", "Eve Fo"]), ("train", ["Ada Bo Cy", "Eve Fo"]), ("test", ["Ada Bo", "Ada Bo Cy"])],
)
def test_the_people_of_a_split_are_left_out(folder: Path, split: str, left: list[str]) -> None:
    """A name that begins another name is another person."""
    corpus = corpus_of(folder, f"data.exclude={split}")
    assert [line.partition(". ")[0] for line in corpus.documents.lines] == left
    assert corpus.vocab == corpus_of(folder).vocab
    assert any("1 lines excluded" in note for note in corpus.notes)


def test_typographic_characters_of_the_test_questions(folder: Path) -> None:
    """Bug: the line of a person whose name the test file has with a curly apostrophe was not left out."""
    (folder / "corpus.txt").write_text(FILES["corpus.txt"] + "Al O'Hara. Born in Rome .\n")
    (folder / "test.tsv").write_text("Where was Al O\u2019Hara born?\n", encoding="utf-8")
    corpus = corpus_of(folder, "data.exclude=test")
    assert not any(line.startswith("Al") for line in corpus.documents.lines)
    assert not corpus.warnings
    corpus = corpus_of(folder)
    assert [closest_people(name, corpus) for name in ("Al O\u2019Hara", "Al O'Hara")] == [None, None]
    assert closest_people("Al O'Haran", corpus) == ["Al O'Hara"]


def test_people_without_a_line_are_not_left_out(folder: Path) -> None:
    """Bug: with other names in the questions, `data.exclude` excluded nothing and nothing was reported."""
    (folder / "dev.tsv").write_text("Where was Ada Bo Cy born?\tOslo\nWhere was Romeo born?\tRome\n")
    assert any(
        "1 of 2 names begin no line" in warning for warning in corpus_of(folder, "data.exclude=dev").warnings
    )
    (folder / "dev.tsv").write_text("Where was Romeo born?\tRome\n")
    with pytest.raises(InputError, match=r"data\.exclude: excludes no line"):
        corpus_of(folder, "data.exclude=dev")


def test_places_are_replaced_in_lines_and_answers(folder: Path) -> None:
    (folder / "other.tsv").write_text('"Ada Bo"\t"Lima"\r\nAda Bo Cy\tBergen\n', newline="")
    corpus = corpus_of(folder, "data.replace=other.tsv")
    first, second, third = corpus.documents.lines
    assert first == "Ada Bo. Ada Bo lived in Romeo and was born in Lima . She left Lima ."
    assert second == "Ada Bo Cy. Born in Bergen ."
    assert third == FILES["corpus.txt"].splitlines()[2]
    assert [row.place for row in (*corpus.train.rows, *corpus.dev.rows)] == ["Lima", "Bergen"]
    assert all(c in corpus.vocab for c in "Bergen")
    assert corpus.sha256["replace"]
    assert corpus.replaced == {"Ada Bo", "Ada Bo Cy"}
    assert f"{folder / 'other.tsv'}: line ends of CR or CRLF: 1" in corpus.notes  # bug: not in the log


def test_the_embedded_counterfactual_corpus() -> None:
    """Every second person of dev has another place, which others have too; everything else stays."""
    plain, other = (
        read_corpus(compose(overrides).data, 128)
        for overrides in ([], ["experiment=counterfactual", "seed=0"])
    )
    assert plain.replaced == frozenset()
    assert len(other.replaced) == len(plain.dev.rows) // 2 == 70
    places = {row.place for row in plain.dev.rows}
    for before, after in zip(plain.dev.rows, other.dev.rows, strict=True):
        name = plain.question.name_in(before.question)
        assert (before.place != after.place) == (name in other.replaced)
        assert after.place in places
    assert plain.train.rows == other.train.rows
    changed = [a != b for a, b in zip(plain.documents.lines, other.documents.lines, strict=True)]
    assert sum(changed) == 70


def test_a_name_that_has_the_place_stays(folder: Path) -> None:
    """Bug: the line lost its person."""
    (folder / "corpus.txt").write_text("Ada Rome. Ada Rome was born in Rome .\n")
    (folder / "train.tsv").write_text("Where was Ada Rome born?\tRome\n")
    (folder / "dev.tsv").write_text("Where was Ada Rome born?\tRome\n")
    (folder / "other.tsv").write_text("Ada Rome\tLima\n")
    corpus = corpus_of(folder, "data.replace=other.tsv", "data.test=null")
    assert corpus.documents.lines == ["Ada Rome. Ada Rome was born in Lima ."]
    (folder / "corpus.txt").write_text("Ada Rome. Ada Rome was there .\n")
    with pytest.raises(InputError, match="the line of Ada Rome does not have Rome"):
        corpus_of(folder, "data.replace=other.tsv", "data.test=null")


def test_a_name_with_two_answers_is_not_replaced(folder: Path) -> None:
    (folder / "dev.tsv").write_text("Where was Ada Bo born?\tOslo\n")
    (folder / "other.tsv").write_text("Ada Bo\tLima\n")
    with pytest.raises(InputError, match=r"other\.tsv:1: Ada Bo has two answers, Rome and Oslo"):
        corpus_of(folder, "data.replace=other.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ada Bo\tRome\tx\n", "other.tsv:1: expected 'NAME<TAB>PLACE'"),
        ("Ada Bo\n", "other.tsv:1: expected"),
        ("Ada Bo\tOslo\n\nAda Bo\tLima\n", "other.tsv:3: Ada Bo is already on line 1"),
        ("\n", "0 replacements"),
        ("Ada Bo\tLim\u2047\n", r"other.tsv:1: .* is reserved for MASK"),  # bug: refused in the corpus
        ("Ada Bo\tLim\ufffd\n", "other.tsv:1: .* a conversion has lost"),
        ('Ada Bo\t"Lima\n', "other.tsv:1: a double quote is not closed"),
        ("Nobody\tOslo\n", "other.tsv:1: no question with an answer is about Nobody"),
        ("Eve Fo\tOslo\n", "other.tsv:1: no question with an answer is about Eve Fo"),
    ],
)
def test_replacements_that_do_not_fit(folder: Path, content: str, message: str) -> None:
    (folder / "other.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        corpus_of(folder, "data.replace=other.tsv")


def test_a_line_without_the_answer_and_a_missing_split(folder: Path) -> None:
    (folder / "other.tsv").write_text("Ada Bo\tOslo\n")
    (folder / "train.tsv").write_text("Where was Ada Bo born?\tOslo\n")
    with pytest.raises(InputError, match="the line of Ada Bo does not have Oslo"):
        corpus_of(folder, "data.replace=other.tsv")
    with pytest.raises(InputError, match="there is no test split"):
        corpus_of(folder, "data.exclude=test", "data.test=null")
    with pytest.raises(InputError, match=r"data\.replace=.*missing\.tsv"):
        corpus_of(folder, "data.replace=missing.tsv")


def test_they_are_part_of_the_identity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(*overrides: str) -> str:
        config = compose([f"data.root={folder}", *overrides])
        corpus = read_corpus(config.data, config.model.block_size)
        return config_hash(hashed_config(with_inputs(config, corpus.sha256)))

    (folder / "other.tsv").write_text("Ada Bo\tLima\n")
    (folder / "same.tsv").write_text("Ada Bo\tLima\n")
    (folder / "third.tsv").write_text("Ada Bo\tOslo\n")
    identities = [identity(), identity("data.exclude=dev"), identity("data.replace=other.tsv")]
    assert len(set(identities)) == 3
    assert identity("data.replace=same.tsv") == identities[2]  # by content
    assert identity("data.replace=third.tsv") != identities[2]
    monkeypatch.setenv("HOME", str(folder))
    assert identity("data.replace='~/same.tsv'") == identities[2]
    (folder / "same.tsv").write_text("Ada Bo\tOslo\n")  # bug: a file below ~ was not hashed
    assert identity("data.replace='~/same.tsv'") == identity("data.replace=third.tsv")


def test_a_run_without_the_asked_people(configure: Any) -> None:
    without, whole = (run(configure(f"data.exclude={split}")) for split in ("dev", "null"))
    assert without["dev"]["total"] == whole["dev"]["total"] == 8
    assert without["stages"]["pretrain"]["characters"] < whole["stages"]["pretrain"]["characters"]
