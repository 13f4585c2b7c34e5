"""The small corpus: the committed files, their numbers, and that only reading tells the places."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from random import Random
from statistics import mean, stdev

import pytest

from birthplace_lm.data.corpora.synthetic import (
    FORMS,
    GIVEN_NAMES,
    MAX_PEOPLE,
    MIN_PEOPLE,
    PLACES,
    SURNAMES,
    make_biographies,
    write_biographies,
)
from birthplace_lm.errors import InputError

DATA = Path(__file__).parents[3] / "data"
SPLITS = ("train", "dev", "test")
PRETRAINED = 112  # characters of a line that span corruption can show: int(block_size * 7 / 8)

Row = tuple[str, str]  # name, place

DATE = r"(?:\d+ \w+ \d{4}|\w+ \d+, \d{4}|\d{4})"
SAYS_BIRTHPLACE = (
    rf"[Bb]orn (?:on )?(?:{DATE} )?in ([A-Z]\w+)",
    r"\(b\. \d+ in (\w+)\)",
    r"\(born \d+, (\w+);",
    rf"\({DATE},? (?:in )?(\w+) - ",
    r"(\w+)-born ",
    r"native of (\w+)",
    r"returned to (\w+), where \S+ had been born",
)


def rows_of(files: dict[str, str], split: str) -> list[Row]:
    matches = [
        re.fullmatch(r"Where was (.+) born\?\t(\w+)", row) for row in files[f"{split}.tsv"].splitlines()
    ]
    assert all(matches)
    return [(match[1], match[2]) for match in matches if match]


def all_rows(files: dict[str, str]) -> list[Row]:
    return list(chain.from_iterable(rows_of(files, split) for split in SPLITS))


def people_of(files: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, place and line of everybody."""
    lines = files["corpus.txt"].splitlines()
    for (name, place), line in zip(all_rows(files), lines, strict=True):
        yield name, place, line


def places_in(line: str) -> list[str]:
    return [word for word in re.findall(r"\w+", line) if word in PLACES]


@pytest.fixture(scope="module")
def committed() -> dict[str, str]:
    return {path.name: path.read_bytes().decode("utf-8") for path in (DATA / "biographies").iterdir()}


@pytest.fixture(scope="module")
def many() -> dict[str, str]:
    return make_biographies(5000)


def test_committed_files_are_what_the_generator_makes(committed: dict[str, str]) -> None:
    assert committed == make_biographies(people=420, seed=0)


def test_writes_what_it_makes(tmp_path: Path, committed: dict[str, str]) -> None:
    folder = tmp_path / "new" / "folder"
    write_biographies(folder)
    write_biographies(folder)  # over what is there
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: text.encode("utf-8") for name, text in committed.items()
    }


def test_spares_what_somebody_else_made(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("mine")
    with pytest.raises(InputError, match=r"train\.tsv: holds something else"):
        write_biographies(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_example_in_the_docstring_is_real(committed: dict[str, str]) -> None:
    examples = re.findall(r"^ +`(.+)`$", make_biographies.__doc__ or "", flags=re.MULTILINE)
    line, row = (example.replace("<TAB>", "\t") for example in examples)
    assert line in committed["corpus.txt"].splitlines()
    assert row in committed["dev.tsv"].splitlines()


def test_seed_decides() -> None:
    assert make_biographies(60, seed=3) == make_biographies(60, seed=3)
    one, two = make_biographies(60, seed=3), make_biographies(60, seed=4)
    assert all(one[name] != two[name] for name in one)


@pytest.mark.parametrize("people", [MIN_PEOPLE, 60, 61, 420, 5000, MAX_PEOPLE])
def test_every_size_is_sound(people: int) -> None:
    files = make_biographies(people, seed=1)
    sizes = [len(rows_of(files, split)) for split in SPLITS]
    assert sizes == [people // 2, people // 3, people - people // 2 - people // 3]
    names = [name for name, _ in all_rows(files)]
    assert len(set(names)) == len({(name.split()[0], name.split()[-1]) for name in names}) == people
    for name, place, line in people_of(files):
        assert line.startswith(f"{name}. ")
        assert line.endswith(" .")
        assert len(line) < 300
        assert place in PLACES


@pytest.mark.parametrize("people", [-600, 0, MIN_PEOPLE - 1, MAX_PEOPLE + 1, 10**9])
def test_refuses_other_sizes_in_one_line(people: int) -> None:
    with pytest.raises(InputError) as caught:
        make_biographies(people)
    message = str(caught.value)
    assert "\n" not in message
    assert {str(people), str(MIN_PEOPLE), str(MAX_PEOPLE)} <= set(re.findall(r"-?\d+", message))


def test_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        write_biographies(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_every_line_says_one_birthplace(many: dict[str, str]) -> None:
    """A reader finds the gold place said to be the birthplace, and no other place said to be it."""
    for _, place, line in people_of(many):
        stated = [match for form in SAYS_BIRTHPLACE for match in re.findall(form, line)]
        assert stated == [place], line
        assert places_in(line).count(place) == 1, line


def test_places_are_part_of_no_other_word(many: dict[str, str]) -> None:
    """Else whoever searches a line for a place, as the metrics do, would find places nobody mentioned."""
    assert all(place.isascii() and place.isalpha() for place in PLACES)
    for _, _, line in people_of(many):
        mentions = sum(line.lower().count(place.lower()) for place in PLACES)
        assert mentions == len(places_in(line)), line


@pytest.mark.parametrize("seed", range(3))
def test_shape(seed: int) -> None:
    files = make_biographies(seed=seed)
    people = list(people_of(files))
    assert 110 <= sum(len(line) for _, _, line in people) / len(people) <= 140
    assert 0.92 <= sum(place in line[:PRETRAINED] for _, place, line in people) / len(people) < 1
    assert 0.45 <= sum(len(places_in(line)) == 2 for _, _, line in people) / len(people) <= 0.62
    assert 0.03 <= sum(not name.isascii() for name, _, _ in people) / len(people) <= 0.08
    for split in SPLITS:
        places = Counter(place for _, place in rows_of(files, split))
        assert places.most_common(1)[0][0] == PLACES[0]
        assert 0.08 <= places[PLACES[0]] / places.total() <= 0.10
    seen = {place for _, place in rows_of(files, "train")}
    assert 0.95 <= sum(place in seen for _, place in rows_of(files, "dev")) / 140 < 1


FEATURES: dict[str, Callable[[str], str]] = {
    "given name": lambda name: name.split()[0],
    "surname": lambda name: name.split()[-1],
    "first letter": lambda name: name[0],
    "last letters": lambda name: name[-2:],
    "length": lambda name: str(len(name)),
    "initials": lambda name: name[0] + name.split()[-1][0],
}


def association(rows: list[Row], feature: Callable[[str], str]) -> float:
    """How many standard deviations more often than by chance two people alike in a feature share their place.

    Chance is what the same names and places give when the places are dealt out again.
    """
    values, places = [feature(name) for name, _ in rows], [place for _, place in rows]

    def agreements() -> int:
        return sum(n * (n - 1) // 2 for n in Counter(zip(values, places, strict=True)).values())

    observed = agreements()
    random = Random(0)
    by_chance = []
    for _ in range(50):
        random.shuffle(places)
        by_chance.append(agreements())
    return (observed - mean(by_chance)) / stdev(by_chance)


@pytest.mark.parametrize("feature", FEATURES)
def test_names_do_not_tell_places(feature: str, many: dict[str, str], committed: dict[str, str]) -> None:
    for files in (many, committed):
        assert abs(association(all_rows(files), FEATURES[feature])) < 4


@pytest.mark.parametrize("feature", ["surname", "last letters"])
def test_a_leak_would_be_noticed(feature: str, many: dict[str, str]) -> None:
    """The check above does find a corpus in which one surname in fifty always goes with the same place."""
    tied = dict(zip(SURNAMES[::50], PLACES[1:], strict=False))
    leaky = [(name, tied.get(name.split()[-1], place)) for name, place in all_rows(many)]
    assert association(leaky, FEATURES[feature]) > 8


def facts(files: dict[str, str]) -> dict[str, str]:
    """The table of data/README.md."""
    people = list(people_of(files))
    lengths = [len(line) for _, _, line in people]
    places = {split: Counter(place for _, place in rows_of(files, split)) for split in SPLITS}
    common = [f"{split} {places[split][PLACES[0]]}" for split in SPLITS]
    count = len(people)
    dev = places["dev"]
    return {
        "people": f"{count}: " + ", ".join(f"{split} {places[split].total()}" for split in SPLITS),
        "characters in `corpus.txt`": f"{len(files['corpus.txt']):,}",
        "distinct characters, the newline among them": f"{len(set(files['corpus.txt']))}",
        "length of a line": f"mean {mean(lengths):.0f}, shortest {min(lengths)}, longest {max(lengths)}",
        f"lines longer than {PRETRAINED} characters": f"{sum(n > PRETRAINED for n in lengths)}",
        "birthplace in its own line": f"{sum(place in line for _, place, line in people)}",
        f"birthplace within the first {PRETRAINED} characters": (
            f"{sum(place in line[:PRETRAINED] for _, place, line in people)}"
        ),
        "lines with another place": f"{sum(len(places_in(line)) == 2 for _, _, line in people)}",
        "lines that name the birthplace before any other": (
            f"{sum(places_in(line)[0] == place for _, place, line in people)}"
        ),
        "sentence forms": f"{len(FORMS)}",
        "given names and surnames to draw from": f"{len(set(GIVEN_NAMES))} and {len(set(SURNAMES))}",
        "names with non-ASCII letters": f"{sum(not name.isascii() for name, _, _ in people)}",
        "places": f"{len(set(PLACES))}, of which {len(places['train'])} in train",
        "dev rows with a place of train": f"{sum(place in places['train'] for place in dev.elements())}",
        f"most frequent place, {PLACES[0]}": ", ".join(common),
        "baseline on dev, always that place": f"{dev[PLACES[0]] / dev.total():.1%}",
    }


def test_the_corpus_has_every_character_of_the_questions(committed: dict[str, str]) -> None:
    question_symbols = set("".join(text for name, text in committed.items() if name != "corpus.txt"))
    assert question_symbols - {"\t"} <= set(committed["corpus.txt"])


def test_numbers_in_the_readme(committed: dict[str, str]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    table = "".join(f"| {quantity} | {value} |\n" for quantity, value in facts(committed).items())
    assert f"| quantity | value |\n| --- | --- |\n{table}\n" in readme
    elsewhere = readme.replace(table, "").replace("CS224N", "")
    assert set(re.findall(r"\d+", elsewhere)) == {
        "420",
        "0",
        str(PRETRAINED),
    }  # the command and the truncation
