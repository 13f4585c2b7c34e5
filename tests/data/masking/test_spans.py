"""Which spans are masked: the 2021 protocol by enumeration, the salient one by its promises."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from titles import titles

from birthplace_lm.data.corpora.corpus import embedded_corpus_dir
from birthplace_lm.data.corpora.qa_files import read_documents, read_questions
from birthplace_lm.data.masking.spans import (
    CAPITALISED_PHRASE,
    EntitySpans,
    RandomSpans,
    SalientSpans,
    Spans,
)
from birthplace_lm.data.questions import QuestionTemplate

BORN = QuestionTemplate.parse("Where was {name} born?")
COURSE_DATA = os.environ.get("BIRTHPLACE_LM_COURSE_DATA", "")
BODY = "Ada Smith was born in Rome, then lived in Oslo from 1901 to 1950 and in Rome ."
Span = tuple[int, ...]  # head, left, start, end, right


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def salient(
    documents: list[str],
    places: list[str],
    block_size: int = 128,
    answer_probability: float = 1.0,
    context_exponent: float = 6.0,
    people: list[str] | None = None,
    sharpness: float = 1.0,
) -> SalientSpans:
    return SalientSpans(
        documents,
        titles(documents),
        people or [""] * len(places),
        places,
        block_size,
        answer_probability,
        sharpness,
        context_exponent,
    )


def listed(spans: Spans) -> list[Span]:
    return [tuple(span) for span in torch.stack(spans, dim=1).tolist()]


def check(spans: list[Span], documents: list[str], block_size: int) -> None:
    """The invariants of `Spans`, and that a row of it and three MASKs fits the block."""
    for (head, left, start, end, right), document in zip(spans, documents, strict=True):
        assert 0 <= head <= left <= start < end <= right <= len(document)
        assert head + (right - left) + 3 <= block_size


def random_spans(length: int, block_size: int, draws: int) -> list[Span]:
    return listed(RandomSpans(["x" * length] * draws, [], [], [], block_size).sample(generator()))


@pytest.mark.parametrize("length", [4, 5, 12, 40])
def test_random_spans_follow_the_protocol_of_2021(length: int) -> None:
    """Every outcome as often as the protocol says: block 24 shows 4 to 21 characters, or all there are."""
    wanted: Counter[Span] = Counter()
    for cut in range(4, 21 + 1):
        shown = min(cut, length)
        lengths = range(1, max(1, shown // 2 - 1) + 1)
        for masked in lengths:
            for start in range(shown - masked + 1):
                ways = 18 * len(lengths) * (shown - masked + 1)
                wanted[0, 0, start, start + masked, shown] += 1 / ways  # type: ignore[assignment]
    draws = 200_000
    seen = Counter(random_spans(length, 24, draws))
    assert sum(wanted.values()) == pytest.approx(1)
    assert set(seen) <= set(wanted)
    surprise = sum((seen[span] - draws * p) ** 2 / (draws * p) for span, p in wanted.items())
    assert surprise < len(wanted) - 1 + 5 * (2 * len(wanted)) ** 0.5  # chi-square, five sigma


def test_random_spans_at_the_size_of_the_source() -> None:
    spans = random_spans(516, 128, 40_000)
    shown = [right for *_, right in spans]
    masked = [end - start for _, _, start, end, _ in spans]
    assert set(shown) == set(range(4, 112 + 1))
    assert sum(masked) / sum(shown) == pytest.approx(1 / 4, abs=0.005)
    assert {i for _, _, start, end, _ in spans for i in range(start, end)} == set(range(112))
    before, after = (sum(column) for column in zip(*((s, r - e) for _, _, s, e, r in spans), strict=True))
    assert before / after == pytest.approx(1, abs=0.02)  # the span is anywhere, with no preference


@given(st.lists(st.integers(4, 600), min_size=1, max_size=30), st.integers(8, 200), st.integers(0, 99))
@settings(max_examples=50)
def test_random_spans_fit(lengths: list[int], block_size: int, seed: int) -> None:
    """Bug: in a block of 8 to 23 characters, 7/8 of it and three MASKs were longer than the block."""
    documents = ["x" * length for length in lengths]
    check(
        listed(RandomSpans(documents, [], [], [], block_size).sample(generator(seed))), documents, block_size
    )


words = st.sampled_from(
    ["Rome", "Oslo", "Washington, D.C.", "born", "in", "née", "Århus", "東京", "1,901", "."]
)
names = st.sampled_from(
    ["Ada Smith", "J. R. Smith", "Wang He", "東京", "ada", "A" * 300, 'Bo "Al" (b.)', "St. Ives"]
)
tidy = (st.lists(words, max_size=120).map(" ".join) | st.text(max_size=300)).map(str.strip)
weird_documents = (
    st.builds("{}. {}".format, names, tidy)
    | tidy
    | names
    | st.sampled_from(["abcd", "... .", "a. b", "Ab. "])
).map(lambda text: text + "...."[len(text) :])  # as short as the reader lets pass
weird_places = st.lists(
    st.sampled_from(["Rome", "Washington, D.C.", "D.C.", "in", "東京", "née", "x" * 400, ""])
)


@given(
    documents=st.lists(weird_documents, min_size=1, max_size=8),
    places=weird_places,
    block_size=st.integers(8, 128),
    answer_probability=st.sampled_from([0.0, 0.5, 1.0]),
    context_exponent=st.sampled_from([0.0, 0.5, 6.0]),
    seed=st.integers(0, 99),
)
@example(["Ab. "], [], 128, 1.0, 0.0, 0)  # nothing after the title
@settings(max_examples=200)
def test_salient_spans_fit_whatever_the_documents(
    documents: list[str],
    places: list[str],
    block_size: int,
    answer_probability: float,
    context_exponent: float,
    seed: int,
) -> None:
    """Bug: without places, or with an empty one, the empty string was taken for a place."""
    spans = salient(documents, places, block_size, answer_probability, context_exponent)
    draws = generator(seed)
    for _ in range(3):
        check(listed(spans.sample(draws)), documents, block_size)
    entities = EntitySpans(documents, titles(documents), [], places, block_size, 1.0, context_exponent)
    check(listed(entities.sample(draws)), documents, block_size)


@pytest.mark.parametrize(
    "title",
    [
        "Ada Smith. ",
        "J. R. Smith. ",
        "Wang He. ",
        "St. Ives. ",
        "Ada Smith (Roman). ",
        "Ada Smith, Jr.. ",
        "Łukasz. ",
        "Dr. Ada Smith. ",
    ],
)
def test_the_title_stays_in_front(title: str) -> None:
    """Bug: names that end in two letters ("Wang He", "Jr.") were not seen to be titles."""
    documents = [title + BODY] * 200
    for power in (0.0, 6.0):
        for head, *_ in listed(salient(documents, ["Rome"], 128, 0.5, power).sample(generator())):
            assert documents[0][:head] == title


def test_a_title_that_fills_the_block_is_left_out() -> None:
    documents = ["A" * 63 + ". Born in Rome .", "A" * 59 + ". Born in Rome ."]
    spans = listed(salient(documents, ["Rome"]).sample(generator()))
    assert [head for head, *_ in spans] == [0, 61]
    assert [document[s:e] for document, (_, _, s, e, _) in zip(documents, spans, strict=True)] == ["Rome"] * 2


def drawn(document: str, chooser: dict[str, object], places: list[str], draws: int = 400) -> Counter[str]:
    documents = [document] * draws
    spans = listed(salient(documents, places, **chooser).sample(generator()))  # type: ignore[arg-type]
    return Counter(document[start:end] for _, _, start, end, _ in spans)


def test_how_often_a_likely_answer_is_masked() -> None:
    text = "Ada Smith. Rome Romero née Ebel, 12.5 or Oslo St. John's Washington, D.C. ."
    places = ["Rome", "Oslo", "Washington", "Washington, D.C.", "St. John's"]
    # no part of a word but a capitalised one; a dot at the end is no hindrance (bug)
    likely = {
        "Rome",
        "Romero",
        "Ebel",
        "Oslo",
        "St",
        "St. John's",
        "John's",
        "Washington",
        "Washington, D.C.",
    }
    assert likely - {"D", "C"} <= set(drawn(text, {}, places)) <= likely | {"D", "C"}
    # "ée" is no capitalised span (bug), "12.5" is a number
    others = {"Rome Romero", "Ebel", "12.5", "Oslo St", "John's Washington", "D", "C"}
    assert set(drawn(text, {"answer_probability": 0.0}, places)) == others
    text = "Ada Smith. rome, 12.5 or oslo ."
    assert drawn(text, {"answer_probability": 0.25}, ["rome"], draws=4000)["rome"] / 4000 == pytest.approx(
        0.25, abs=0.035
    )


def test_an_answer_that_does_not_fit_is_no_reason_to_mask_another_word() -> None:
    """Bug: the words of the line that are not its answer stayed, with weight 0, and the last was masked."""
    text, people = "Ada Bo. Rome Saint Petersburg Russia 1950 Oslo .", ["Ada Bo"]
    places = ["Saint Petersburg Russia"]
    assert set(drawn(text, {"people": people}, places)) == set(places)
    short = drawn(text, {"people": people, "block_size": 32}, places)
    assert short == drawn(text, {"people": people, "block_size": 32, "answer_probability": 0.0}, places)
    assert {"1950", "Oslo"} <= set(short)


def test_a_document_without_anything_salient() -> None:
    assert set(drawn("ada smith. nobody knows", {}, ["Rome"])) == {"nobody knows"}
    assert set(drawn("ada smith. " + "x" * 400, {"block_size": 64}, ["Rome"])) == {"x" * 30}


def test_context_power_zero_shows_all_that_fits() -> None:
    documents = ["Ada Smith. " + BODY] * 300
    for head, left, _, _, right in listed(salient(documents, ["Rome"], 128, 0.5, 0.0).sample(generator())):
        assert (head, left, right) == (11, 11, len(documents[0]))
    for head, left, start, end, right in listed(
        salient(documents, ["Rome"], 64, 0.5, 0.0).sample(generator())
    ):
        assert head + (right - left) + 3 == 64 or (left, right) == (
            head,
            len(documents[0]),
        )
        assert left == max(head, start - (64 - 3 - head - (end - start)))  # what comes before goes first


def test_context_power_one_shows_every_distance_as_often() -> None:
    documents = ["Ada Smith. in Rome ."] * 8000  # 0 to 3 characters before Rome, 0 to 2 after it
    spans = listed(salient(documents, ["Rome"], 128, 1.0, 1.0).sample(generator()))
    seen = Counter((start - left, right - end) for _, left, start, end, right in spans)
    assert set(seen) == {(before, after) for before in range(4) for after in range(3)}
    assert sum((n - 8000 / 12) ** 2 / (8000 / 12) for n in seen.values()) < 11 + 5 * 22**0.5  # chi-square


def test_a_larger_context_power_shows_less() -> None:
    documents = ["Ada Smith. " + BODY.lower()] * 4000
    shown = []
    for power in (0.5, 1.0, 2.0, 6.0, 30.0):
        spans = listed(salient(documents, ["oslo"], 128, 1.0, power).sample(generator()))
        shown.append(sum(start - left for _, left, start, _, _ in spans) / len(spans))
    assert shown == sorted(shown, reverse=True)
    most = documents[0].index("oslo") - len("Ada Smith. ")
    assert shown[2] == pytest.approx((most + 1) / 3 - 0.5, abs=1)  # E[u ** 2] = 1/3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("answer_probability", 1.5),
        ("answer_probability", -0.1),
        ("sharpness", -1.0),
        ("context_exponent", -1.0),
        ("context_exponent", 1e999),
    ],
)
def test_settings_out_of_range(key: str, value: float) -> None:
    """Bug: a negative context_exponent gave spans outside their documents."""
    with pytest.raises(ValueError, match=rf"^{key}={re.escape(str(value))}: must be"):
        salient([BODY], ["Rome"], **cast(dict[str, Any], {key: value}))


@pytest.mark.parametrize(
    ("root", "corpus", "questions", "without"),
    [
        (embedded_corpus_dir(), "corpus.txt", ["train.tsv", "dev.tsv", "test.tsv"], []),
        pytest.param(
            Path(COURSE_DATA),
            "wiki.txt",
            ["birth_places_train.tsv", "birth_dev.tsv", "birth_test_inputs.tsv"],
            ["Anastasius I"],
            marks=pytest.mark.skipif(not COURSE_DATA, reason="BIRTHPLACE_LM_COURSE_DATA is not set"),
        ),
    ],
    ids=["biographies", "course"],
)
def test_the_title_is_the_person_of_the_question(
    root: Path, corpus: str, questions: list[str], without: list[str]
) -> None:
    documents = read_documents(root / corpus).lines
    rows = [row for name in questions for row in read_questions(root / name, "optional").rows]
    heads = salient(documents, ["Rome"], 256, 0.0).title_ends.tolist()
    titles = [document[:head] for document, head in zip(documents, heads, strict=True)]
    people = [BORN.name_in(row.question) for row in rows]
    assert [p for p, title in zip(people, titles, strict=True) if title != f"{p}. "] == without


def test_entities_recur_and_are_no_common_words() -> None:
    documents = [
        "Ada Smith. Born in New York in 1901 , Smith wrote in Oslo and Oslo .",
        "Bo Smith. Born in York , died in New York in 1901 .",
        "Cy Wang. Teacher . Born in Rome , not born in Oslo, born in Rome .",
        "Di Wang. He was a teacher , born in York , born abroad .",
        "Ed Wang. nobody knows",
        *["Fo Wang. she went from Bonn to Oslo"] * 2,  # bug: a copy of the line counted as another document
    ]
    entities = EntitySpans(documents, titles(documents), [], [], 128, 0.0, 6.0)
    draws = generator()
    masked: list[set[str]] = [set() for _ in documents]
    for _ in range(200):
        for row, document, (_, _, start, end, _) in zip(
            masked, documents, listed(entities.sample(draws)), strict=True
        ):
            row.add(document[start:end])
    assert masked == [
        {"New York", "Oslo"},  # Smith follows no other title, Born is a common word, 1901 is a number
        {"York", "New York"},
        {"Oslo"},  # Rome twice, but in one document
        {"York"},
        {"nobody knows"},  # no entity: the rest of the line
        *[{"Oslo"}] * 2,
    ]


def test_earlier_entities_are_masked_more_often() -> None:
    documents = ["Ada Smith. Rome , Oslo and Turin .", "Bo Smith. Turin , Oslo and Rome ."] * 3000
    for exponent in (0.0, 1.0, 2.0):
        spans = listed(
            EntitySpans(documents, titles(documents), [], [], 128, exponent, 6.0).sample(generator())
        )
        seen = Counter(document[s:e] for document, (_, _, s, e, _) in zip(documents, spans, strict=True))
        firsts = sum(d[s:e] == d.split()[2] for d, (_, _, s, e, _) in zip(documents, spans, strict=True))
        weights = [n**-exponent for n in (1, 2, 3)]
        assert firsts / len(documents) == pytest.approx(weights[0] / sum(weights), abs=0.03)
        assert seen["Oslo"] / len(documents) == pytest.approx(weights[1] / sum(weights), abs=0.03)
    for exponent in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^lead_exponent=.*: must be 0 or more"):
            EntitySpans(documents, titles(documents), [], [], 128, exponent, 6.0)


def test_entities_do_not_depend_on_any_answer() -> None:
    documents = ["Ada Smith. " + BODY, "Bo Smith. " + BODY]
    without, answered = (
        EntitySpans(documents, titles(documents), people, places, 128, 1.0, 6.0).sample(generator())
        for people, places in (([], []), (["Ada Smith"], ["Oslo"]))
    )
    assert listed(without) == listed(answered)


def test_entities_are_often_the_answer() -> None:
    """An independent count: how often a drawn span is the answer of the train people."""
    root = embedded_corpus_dir()
    documents = read_documents(root / "corpus.txt").lines
    rows = read_questions(root / "train.tsv", "required").rows
    answers = {f"{BORN.name_in(row.question)}. ": row.place for row in rows}

    def share(spans: EntitySpans | SalientSpans) -> float:
        draws, hits = generator(), []
        for _ in range(20):
            for document, (head, _, start, end, _) in zip(
                documents, listed(spans.sample(draws)), strict=True
            ):
                if document[:head] in answers:
                    hits.append(document[start:end] == answers[document[:head]])
        return sum(hits) / len(hits)

    any_span = share(salient(documents, [], 128, 0.0))
    assert share(EntitySpans(documents, titles(documents), [], [], 128, 0.0, 6.0)) > 1.5 * any_span > 0.1


def test_sharpness_prefers_the_likeliest() -> None:
    """Forty people say how far more often the answer comes first than second; a line of each is alike."""
    firsts = [f"Ada {a}{b}mith. born Rome or Oslo ." for a in "BCDF" for b in "GHJKLMNPQR"]
    people = [document.split(". ")[0] for document in firsts]
    places = ["Rome"] * 30 + ["Oslo"] * 10
    documents = [*firsts, *["Bo Smith. born Paris or Turin ."] * 2000]
    shares = []
    for sharpness in (0.0, 1.0, 2.0, 8.0):
        spans = salient(documents, places, people=people, sharpness=sharpness).sample(generator())
        masked = [d[s:e] for d, (_, _, s, e, _) in zip(documents, listed(spans), strict=True)][40:]
        assert set(masked) <= {"Paris", "Turin"}
        shares.append(masked.count("Paris") / len(masked))
    assert shares[0] == pytest.approx(0.5, abs=0.04)
    assert shares[1] == pytest.approx(0.75, abs=0.08)
    odds = shares[1] / (1 - shares[1])
    assert shares[2] == pytest.approx(odds**2 / (1 + odds**2), abs=0.04)
    assert shares[3] > 0.97


def test_without_sharpness_what_is_no_answer_stays_unmasked() -> None:
    """Bug: 0 ** 0 is 1, so the other words of a labelled line were masked as often as its answer."""
    documents = ["Ada Smith. born Rome or Oslo ."] * 200
    spans = salient(documents, ["Rome"], people=["Ada Smith"], sharpness=0.0).sample(generator())
    assert {documents[0][s:e] for _, _, s, e, _ in listed(spans)} == {"Rome"}


def test_small_letters_with_accents_are_no_capitals() -> None:
    """Bug: all letters but a to z counted as capitals."""
    document = "Zoé Éluard. Un poète né à Évry et élevé à l'école été 1900 ; Ærø, Żory, Ωmega, Яна"
    phrases = [match[0] for match in CAPITALISED_PHRASE.finditer(document)]
    assert phrases == ["Zoé Éluard", "Un", "Évry", "Ærø", "Żory", "Ωmega", "Яна"]


def test_documents_without_a_title_are_said() -> None:
    """Bug: their rows were trained without anybody's name, and nothing was said."""
    titled, untitled = "Ada Bo. Born in Rome .", "Ada Bo was born in Rome ."
    assert EntitySpans([titled] * 4, ["Ada Bo. "] * 4, [], [], 64, 1.0, 6.0).warnings == []
    documents = [titled] * 3 + [untitled]
    (warning,) = EntitySpans(documents, titles(documents), [], [], 64, 1.0, 6.0).warnings
    assert warning.startswith("1 of 4 lines have no title 'Full Name. '")
