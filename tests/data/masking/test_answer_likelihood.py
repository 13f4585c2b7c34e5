"""Which word of a line is the answer: taught by some people, right about others."""

import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from titles import titles

from birthplace_lm.data.corpora.consistency import title_of
from birthplace_lm.data.corpora.corpus import embedded_corpus_dir
from birthplace_lm.data.corpora.qa_files import read_documents, read_questions
from birthplace_lm.data.masking.answer_likelihood import CAPITALISED, score_answer_spans
from birthplace_lm.data.questions import QuestionTemplate, normalise

BORN = QuestionTemplate.parse("Where was {name} born?")
COURSE_DATA = os.environ.get("BIRTHPLACE_LM_COURSE_DATA", "")
TEACHERS = tuple(f"Ada {c}mith. She died in Oslo, but was born in Rome ." for c in "BCDFGHJKLMNPQRSTVWXZ")
PEOPLE = tuple(document.split(". ")[0] for document in TEACHERS)


def shown(document: str, answers: int = 20) -> dict[str, float]:
    """How likely each candidate of a line about somebody else is, with so many teachers; the likeliest 1."""
    documents = (*TEACHERS, document)
    places = ("Rome",) * answers + ("Oslo",)
    spans, odds = score_answer_spans(documents, titles(documents), (*PEOPLE[:answers], "Cy"), places)
    return {document[s:e]: p for (s, e), p in zip(spans[-1], odds[-1], strict=True)}


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("Malcolm X. Malcolm X was born in Omaha. He left .", "Malcolm X. "),
        ("Wham!. Wham! are from Bushey. They sang .", "Wham!. "),
        ("J. R. Bo. J. R. Bo was born in Ur .", "J. R. Bo. "),
        ("Ada Bo. Born in Ur. Ada Bo. Born in Ur. x", "Ada Bo. "),
        ("Prof. Ada Bo. Born in Ur. She left .", "Prof. Ada Bo. "),
        ("Ann B. Ann Bo was born in Ur. She left .", "Ann B. Ann Bo was born in Ur. "),
    ],
)
def test_the_title_of_a_line(line: str, title: str) -> None:
    """Bug: the title of a name that ends in one letter was the first sentence, with its answer."""
    assert title_of(line) == title


def test_a_line_about_somebody_who_is_asked_about_has_that_name() -> None:
    """Bug: the title of a king's line was its first sentence, so that nothing in it was ever masked."""
    line = "Henry V. Born in Monmouth. He died in Vincennes ."
    assert title_of(line) == "Henry V. Born in Monmouth. "
    assert title_of(line, {"Henry V", "Henry", "Ada"}) == "Henry V. "
    assert title_of("Ada Bo. Born in Ur .", {"Henry V"}) == "Ada Bo. "
    assert title_of("no full stop at all", {"Henry V"}) == ""


def test_words_around_the_answer_tell() -> None:
    scores = shown("Bo Smith. He died in Rome, but was born in Oslo .")
    assert scores["Oslo"] == 1
    assert sum(scores.values()) < 1.1


def test_without_teachers_all_are_alike() -> None:
    scores = shown("Bo Smith. He died in Rome, but was born in Oslo .", answers=0)
    assert set(scores.values()) == {1}


def test_the_cue_need_not_be_born() -> None:
    """Instruments: only how far the word "born" stands before a candidate was a feature of the line."""
    instruments = ["harp", "viola", "oboe", "flute", "cello"] * 4
    pairs = [(own, instruments[i + 1 + i // 5]) for i, own in enumerate(instruments[:15])]
    how = ["today", "with joy", "now and then"] * 5
    players = [
        f"Ada {initial}mith. His {other} broke; he then performs {adverb} on a {own} ."
        for initial, adverb, (own, other) in zip("BCDFGHJKLMNPQRS", how, pairs, strict=True)
    ]
    other = "Bo Smith. He performs every day of the week on a harp, as his viola broke ."
    people = tuple(player.split(". ")[0] for player in players)
    documents = (*players, other)
    spans, odds = score_answer_spans(documents, titles(documents), people, tuple(own for own, _ in pairs))
    scores = {other[s:e]: p for (s, e), p in zip(spans[-1], odds[-1], strict=True)}
    assert max(scores, key=lambda candidate: scores[candidate]) == "harp"


def test_a_place_that_no_train_answer_names_can_be_the_answer() -> None:
    assert shown("Bo Smith. He died in Rome, but was born in Xanadu .")["Xanadu"] == 1


def test_whose_answer_is_known_keeps_it_alone() -> None:
    spans, odds = score_answer_spans(TEACHERS[:1], titles(TEACHERS[:1]), PEOPLE[:1], ("Oslo",))
    assert [TEACHERS[0][s:e] for s, e in spans[0]] == ["She", "Oslo", "Rome"]
    assert odds == [[0, 1, 0]]


words = st.sampled_from(
    ["Rome", "Washington, D.C.", "born", "née", "Århus", "東京", "1,901", ".", "Ada Smith. "]
)
lines = st.lists(words, min_size=1, max_size=12).map(" ".join) | st.text(min_size=1)


@given(st.lists(lines, max_size=6), st.lists(st.sampled_from(["Rome", "Washington, D.C.", "東京", "", "x"])))
@settings(max_examples=60)
def test_candidates_are_parts_of_their_lines(documents: list[str], places: list[str]) -> None:
    people = ("Ada Smith",) * len(places)
    spans, odds = score_answer_spans(tuple(documents), titles(documents), people, tuple(places))
    assert len(spans) == len(odds) == len(documents)
    for document, choices, row in zip(documents, spans, odds, strict=True):
        assert all(0 <= start < end <= len(document) for start, end in choices)
        assert len(choices) == len(set(choices)) == len(row)
        assert not row or max(row) == 1
        assert all(0 <= p <= 1 for p in row)


@given(lines | st.text("aé_1 .,("), st.sets(lines.map(str.strip) | st.text("aé_1.,(", min_size=1)))
def test_answers_are_found_as_a_regular_expression_would(document: str, answers: set[str]) -> None:
    """Which takes hours for a hundred thousand answers."""
    answers = {normal for answer in answers if (normal := normalise(answer))}
    names = "|".join(re.escape(answer) for answer in sorted(answers, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)" if names else r"(?!)")
    (title,) = titles([document])
    spans, _ = score_answer_spans((document,), (title,), ("",) * len(answers), tuple(answers))
    expected = {match.span() for match in pattern.finditer(document, len(title))}
    assert expected <= {*spans[0]}
    for start, end in {*spans[0]} - expected:
        assert CAPITALISED.fullmatch(document, start, end)


@pytest.mark.parametrize(
    ("root", "corpus", "train", "at_least"),
    [
        (embedded_corpus_dir(), "corpus.txt", "train.tsv", 0.9),
        pytest.param(
            Path(COURSE_DATA),
            "wiki.txt",
            "birth_places_train.tsv",
            0.88,
            marks=pytest.mark.skipif(not COURSE_DATA, reason="BIRTHPLACE_LM_COURSE_DATA is not set"),
        ),
    ],
    ids=["biographies", "course"],
)
def test_right_about_people_it_was_not_taught_about(
    root: Path, corpus: str, train: str, at_least: float
) -> None:
    """Every fifth train person is left out and asked about; the same with one thread and with two."""
    documents = tuple(read_documents(root / corpus).lines)
    rows = [row for row in read_questions(root / train, "required").rows if row.place]
    held_out, taught = rows[::5], [row for i, row in enumerate(rows) if i % 5]
    people, places = (
        tuple(BORN.name_in(r.question) or "" for r in taught),
        tuple(r.place or "" for r in taught),
    )
    scores = []
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        score_answer_spans.cache_clear()
        scores.append(score_answer_spans(documents, titles(documents), people, places))
    torch.set_num_threads(threads)
    assert scores[0] == scores[1]
    right = 0
    for row in held_out:
        title = f"{BORN.name_in(row.question)}. "
        line = next((n for n, document in enumerate(documents) if document.startswith(title)), None)
        if line is not None and scores[0][0][line]:
            best = max(zip(scores[0][1][line], scores[0][0][line], strict=True))[1]
            right += documents[line][best[0] : best[1]] == row.place
    assert right / len(held_out) > at_least
