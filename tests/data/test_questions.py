"""The template of a question, and what normalising makes alike."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data.corpora.qa_files import read_questions
from birthplace_lm.data.questions import birthplace_question, name_from_question, normalise, question_about

SPACES = [chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp")]


@given(st.text(min_size=1))
def test_name_from_question_inverts_birthplace_question(name: str) -> None:
    assert name_from_question(birthplace_question(name)) == name


@pytest.mark.parametrize("question", ["Where was born?", "Where was  born", "Who was Ada?"])
def test_name_of_another_question_is_the_question(question: str) -> None:
    assert name_from_question(question) == question


@pytest.mark.parametrize("space", [*SPACES, "  ", " \u00a0 ", "\t", "\u00a0\u200b"])
def test_any_white_space_is_one_space(space: str) -> None:
    """Bug: two spaces between the names of a person gave the answer of somebody else."""
    assert normalise(f"{space}Ada{space}Lovelace{space}") == "Ada Lovelace"


@given(st.text() | st.text("e\u0301\u00ad \u00a0\u200b?"))
def test_normalise_is_a_projection(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("invisible", ["\u00ad", "\u200b", "\u200e", "\u202a", "\u2066", "\u2060", "\ufeff"])
def test_what_has_no_shape_is_left_out(invisible: str) -> None:
    assert normalise(f"Zo{invisible}e\u0308{invisible}") == "Zo\u00eb"


def test_normalise_is_what_the_reader_does(tmp_path: Path) -> None:
    typed = " \ufeffZoe\u0308\u00ad\u200f \u2009 Li "
    (tmp_path / "q.tsv").write_text("A\tB\n" + typed, encoding="utf-8")
    row = read_questions(tmp_path / "q.tsv", places="optional").rows[1]
    assert row.question == normalise(typed) == "Zoë Li"


@pytest.mark.parametrize(
    "typed", ["Ada Bo", " Ada\u00a0Bo", "Where was Ada Bo born?", "Where was  Ada Bo born?"]
)
def test_a_name_or_its_question_may_be_typed(typed: str) -> None:
    """Bug: a typed question was put into the question once more, and answered."""
    assert question_about(typed) == "Where was Ada Bo born?"
