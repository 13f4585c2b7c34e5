"""Invented people with five facts: who they are, how they are told, and what is asked."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import options
from birthplace_lm.data.corpora.attributes import (
    ATTRIBUTES,
    INVERSE,
    PAIRS,
    Wording,
    biographies,
    make_people,
    read_people,
    shuffled_index,
    write_attribute_biographies,
)
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.data.datamodule import SpanCorruptionDataModule
from birthplace_lm.data.prompt_format import own_lines
from birthplace_lm.errors import InputError


@pytest.mark.parametrize("size", [1, 2, 3, 12, 255, 256, 257, 1023, 1025, 4097])
def test_shuffled_indices_are_a_permutation(size: int) -> None:
    orders = [[shuffled_index(i, size, seed) for i in range(size)] for seed in (0, 1)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 12 or orders[0] != orders[1]


@pytest.mark.parametrize("people", [2000, PAIRS + 1])
def test_names_are_distinct(people: int) -> None:
    names = [person.name for person in islice(make_people(people, 0), 5000)]
    assert len(set(names)) == len(names)
    assert {len(name.split()) for name in names} == {2 if people <= PAIRS else 3}


def test_values_are_uniform_and_say_nothing_about_each_other() -> None:
    people = [*make_people(20_000, 0)]
    for number, attribute in enumerate(ATTRIBUTES):
        counts = Counter(person.values[number] for person in people)
        if attribute.values < 1000:
            assert len(counts) == attribute.values
            expected = len(people) / attribute.values
            chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
            assert chi_squared < attribute.values + 5 * math.sqrt(2 * attribute.values)
        assert attribute.bits == math.log2(attribute.values)
    pairs = Counter((person.values[1], person.values[3]) for person in people)
    expected = len(people) / (ATTRIBUTES[1].values * ATTRIBUTES[3].values)
    cells = ATTRIBUTES[1].values * ATTRIBUTES[3].values
    missing = (cells - len(pairs)) * expected
    chi_squared = missing + sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi_squared < cells + 5 * math.sqrt(2 * cells)


def test_everything_about_a_person_follows_from_the_seed_and_the_number() -> None:
    assert [*make_people(100, 3)][40:50] == [*make_people(100, 3, range(40, 50))]
    assert [*make_people(100, 3)] != [*make_people(100, 4)]


def test_wordings() -> None:
    person = next(make_people(100, 0))
    (single,) = biographies(person, 0, 0, Wording())
    assert single.startswith(f"{person.name}. He ")
    assert [single.index(value) for value in person.values] == sorted(map(single.index, person.values))
    five = biographies(person, 1, 0, Wording(biographies=5, permute=True, full_names=True))
    assert len(set(five)) == 5
    for line in five:
        assert line.count(person.name) == 6  # the title and five sentences
        assert all(value in line for value in person.values)
    assert len({tuple(sorted(map(line.index, person.values))) for line in five}) > 1
    assert len({line.split(person.values[2])[0].rsplit(". ", 1)[1] for line in five}) == 5  # five wordings
    (short,) = biographies(person, 0, 0, Wording(short=True))
    assert short == f"{person.name}. {', '.join(person.values)} ."


def test_people_take_turns_in_how_often_their_lines_are_repeated() -> None:
    people = [*make_people(20, 0)]
    wording = Wording(biographies=2, exposures=(1, 3))
    counts = [Counter(biographies(person, i, 0, wording)) for i, person in enumerate(people)]
    assert [set(count.values()) for count in counts] == [{1}, {3}] * 10
    assert all(len(count) == 2 for count in counts)


def test_files(tmp_path: Path) -> None:
    write_attribute_biographies(tmp_path, 40, 7, Wording(biographies=2, permute=True))
    people = read_people(tmp_path / "people.tsv")
    assert people == [*make_people(40, 7)]
    questions = {f"bios_{a.name}": a.question for a in ATTRIBUTES} | {"bios_inverse": INVERSE}
    assert {name for name in options()["data"] if name.startswith("bios")} == {*questions}
    for data, question in questions.items():
        config = compose([f"data={data}", f"data.root={tmp_path}", "pretrain=language_modeling"])
        corpus = read_corpus(config.data, config.model.block_size)
        assert corpus.question.text == question
        assert corpus.warnings == []
        assert len(corpus.documents.lines) == 80
        settings = {"closing_mask": True, "min_shift": None}
        prompts = SpanCorruptionDataModule.prompt_format_of(settings, corpus)
        assert (prompts is None) == (data == "bios_inverse"), "no line begins with a date"
        if data != "bios_inverse":
            assert (len(corpus.train.rows), len(corpus.dev.rows)) == (20, 20)
            golds = [row.place for row in (*corpus.train.rows, *corpus.dev.rows)]
            column = [a.name for a in ATTRIBUTES].index(data.removeprefix("bios_"))
            assert golds == [person.values[column] for person in people]
    assert {name: len(lines) for name, lines in own_lines(corpus.documents.lines).items()} == {
        person.name: 2 for person in people
    }
    write_attribute_biographies(tmp_path, 40, 7, Wording(biographies=2, permute=True))  # the same: fine
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"corpus\.txt: holds something else"):
        write_attribute_biographies(tmp_path, 40, 8, Wording())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("people", "wording"),
    [(3, Wording()), (1_000_001, Wording()), (20, Wording(biographies=0)), (20, Wording(exposures=(0,)))],
)
def test_what_is_out_of_range(tmp_path: Path, people: int, wording: Wording) -> None:
    with pytest.raises(InputError):
        write_attribute_biographies(tmp_path / "new", people, 0, wording)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("name\tplace\n", "has other columns"), (None, "cannot be read")],
)
def test_a_file_of_people_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "people.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_people(tmp_path / "people.tsv")
