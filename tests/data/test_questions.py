"""The template of a question, and what normalising makes alike."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data.corpora.qa_files import read_questions
from birthplace_lm.data.questions import QuestionTemplate, normalise
from birthplace_lm.errors import InputError

SPACES = [chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp")]


BORN = QuestionTemplate.parse("Where was {name} born?")
OTHERS = ["Which town is {name} from?", "{name}", "{name}?", "Who is {name}"]
WORDINGS = [BORN, *map(QuestionTemplate.parse, OTHERS)]


@given(st.sampled_from(WORDINGS), st.text(min_size=1))
def test_name_in_inverts_about(template: QuestionTemplate, name: str) -> None:
    assert template.name_in(template.about(name)) == name


@given(st.sampled_from(WORDINGS), st.text() | st.text("Where was born?Who is {name}"))
def test_a_question_of_another_wording_has_no_name(template: QuestionTemplate, question: str) -> None:
    """Against the regular expression of the template."""
    pattern = re.escape(template.text).replace(re.escape("{name}"), "(.+)")
    match = re.fullmatch(pattern, question, re.DOTALL)
    assert template.name_in(question) == (match and match[1])


@pytest.mark.parametrize("question", ["Where was born?", "Where was  born", "Who was Ada?"])
def test_no_name_overlaps_the_wording(question: str) -> None:
    assert BORN.name_in(question) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Where was NAME born?", "has no {name}; write {name} once"),
        ("Is {name} like {name}?", "has 2 {name}; write {name} once"),
        ("Where was {Name} born?", "has no {name}"),
        ("Where was {name} \u2047", "U+2047 is reserved; remove it"),
        ("\u25a1 {name}", "U+25A1 is reserved; remove it"),
    ],
)
def test_a_template_has_one_name_and_no_reserved_character(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        QuestionTemplate.parse(text)
    assert str(error.value).startswith(f"data.question={text}: ")
    assert message in str(error.value)


def test_a_template_is_normalised_as_questions_are() -> None:
    template = QuestionTemplate.parse(" Ou\u0300 est\u00a0 n\u00e9 {name} ?\u200b ")
    assert template.text == "O\u00f9 est n\u00e9 {name} ?"
    assert template.about("Ada") == normalise(template.about("Ada"))


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
    assert BORN.about_typed(typed) == "Where was Ada Bo born?"
