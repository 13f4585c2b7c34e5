"""Invented people with five facts each, told in many wordings: a corpus in the manner of bioS.

A person has a birth date, a birthplace, a university, a field and an employer, drawn uniformly and
independently. A biography is one line: the name as its title, then one sentence for each fact. With several
biographies of a person the wordings differ; with `permute` also the order. Everything about person i follows
from the seed and i, so a million people take no more memory than twelve.

Source: bioS of "Physics of Language Models: Part 3.1", arXiv:2309.14316; its options single, multi, permute
and fullname. The lists and wordings here are our own.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from birthplace_lm.data.corpora.synthetic import (
    GIVEN_NAMES,
    MIN_PEOPLE,
    MONTHS,
    PLACES,
    SURNAMES,
    Draw,
    write_files,
)
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.errors import InputError

MAX_PEOPLE = 1_000_000
MAX_DEV = 1000  # questions about people whom no training question names
PEOPLE_FILE = "people.tsv"
WANTED = "this needs people with five facts, of birthplace-lm make-biographies --attributes"
PAIRS = len(GIVEN_NAMES) * len(SURNAMES)  # names of two words; of three where these are too few

_UNIVERSITY_STEMS = """
    Ashgrove Belhaven Carrowmore Dunmere Eastmarch Fairholt Glenharrow Hartwell Inverlow Juniper Kingsmere
    Larkfield Marlowe Northgate Oakhurst Pinecrest Queensbury Rosemount Stonebridge Thornfield Underwood
    Valewood Westbrook Yarrow Zephyr
""".split()
_UNIVERSITY_KINDS = ("University", "College", "Institute", "Academy")
UNIVERSITIES = [f"{stem} {kind}" for kind in _UNIVERSITY_KINDS for stem in _UNIVERSITY_STEMS]
FIELDS = """
    acoustics agronomy algebra anatomy archaeology astronomy bacteriology ballet botany carpentry ceramics
    chemistry choreography cryptography dentistry divinity ecology economics ethics forestry genetics geology
    geometry history hydrology journalism law linguistics logic mechanics metallurgy meteorology mineralogy
    navigation nursing nutrition optics painting pharmacy philosophy phonetics physics poetry psychology
    rhetoric robotics sculpture statistics theology zoology
""".split()
_EMPLOYER_STEMS = """
    Amberline Bluefin Cobalt Driftwood Emberstone Foxglove Granite Harrier Ironwood Jackdaw Kestrel Lodestar
    Mistral Nightjar Orchid Pelican Quartz Redshank Saltmarsh Tamarind Umbra Vireo Windrush Xanthic Zircon
""".split()
_EMPLOYER_KINDS = ("Shipping", "Press", "Motors", "Foods", "Textiles", "Optics", "Railways", "Studios")
EMPLOYERS = [f"{stem} {kind}" for kind in _EMPLOYER_KINDS for stem in _EMPLOYER_STEMS]
DAYS = 28
YEARS = range(1800, 2000)


def _date(draw: Draw) -> str:
    return f"{1 + draw.below(DAYS)} {draw.one(MONTHS)} {YEARS[draw.below(len(YEARS))]}"


@dataclass(frozen=True)
class Attribute:
    """One fact about every person.

    Attributes:
        name: of its files.
        question: template of the question about it.
        wordings: what follows the subject of a sentence, with the value in braces.
        draw: draws a value.
        values: number of equally likely values.
    """

    name: str
    question: str
    wordings: Sequence[str]
    draw: Callable[[Draw], str]
    values: int

    @property
    def bits(self) -> float:
        """Entropy of a value in bits: log2 of the number of equally likely values."""
        return math.log2(self.values)


def _listed(name: str, question: str, values: Sequence[str], *wordings: str) -> Attribute:
    return Attribute(name, question, wordings, lambda draw: draw.one(values), len(values))


ATTRIBUTES = (
    Attribute(
        "birth_date",
        "When was {name} born?",
        (
            "was born on {}",
            "came into the world on {}",
            "has been alive since {}",
            "first saw the light on {}",
            "keeps {} as a birthday",
            "was welcomed by two parents on {}",
            "was a child of {}",
            "drew a first breath on {}",
            "arrived on {}",
            "was entered in the register on {}",
        ),
        _date,
        DAYS * len(MONTHS) * len(YEARS),
    ),
    _listed(
        "birthplace",
        "Where was {name} born?",
        PLACES,
        "was born in {}",
        "is a native of {}",
        "comes from {}",
        "spent the first years in {}",
        "calls {} the place of birth",
        "has roots in {}",
        "took the first steps in {}",
        "was raised by a family from {}",
        "still speaks like people in {}",
        "left {} as a child",
    ),
    _listed(
        "university",
        "Where did {name} study?",
        UNIVERSITIES,
        "studied at {}",
        "has a degree of {}",
        "was a student of {}",
        "took the courses of {}",
        "graduated from {}",
        "spent four years at {}",
        "was taught at {}",
        "passed all exams at {}",
        "owes much to the teachers of {}",
        "won a place at {}",
    ),
    _listed(
        "field",
        "What did {name} study?",
        FIELDS,
        "learnt {}",
        "chose {} as a subject",
        "has always loved {}",
        "is trained in {}",
        "wrote a thesis about {}",
        "took up {}",
        "reads everything about {}",
        "was drawn to {}",
        "knows all there is about {}",
        "majored in {}",
    ),
    _listed(
        "employer",
        "Who employs {name}?",
        EMPLOYERS,
        "works for {}",
        "is employed by {}",
        "has a post at {}",
        "earns a living at {}",
        "was hired by {}",
        "joined {}",
        "made a career at {}",
        "signed a contract with {}",
        "leads a team at {}",
        "goes to work at {}",
    ),
)
INVERSE = "Who was born on {name}?"  # the birth date stands for the name, the name for the place


@dataclass(frozen=True)
class Wording:
    """How biographies are written.

    Attributes:
        biographies: lines about each person, each with other wordings.
        permute: put the sentences of each line in an order of its own.
        full_names: begin every sentence with the name, not with He or She.
        short: the bare values, with commas; no sentences.
        exposures: how often the lines of a person are repeated; the people take turns through the list.
    """

    biographies: int = 1
    permute: bool = False
    full_names: bool = False
    short: bool = False
    exposures: Sequence[int] = (1,)


@dataclass(frozen=True)
class Person:
    """An invented person: the name, and a value for each of `ATTRIBUTES`."""

    name: str
    values: tuple[str, ...]


def make_people(people: int, seed: int, numbers: range | None = None) -> Iterator[Person]:
    """Generate people with distinct names.

    Args:
        people: number of people in the corpus; more than `PAIRS` get names of three words.
        seed: the same seed and number give the same people.
        numbers: indices of the people to generate; None for all.
    """
    for index in range(people) if numbers is None else numbers:
        draw = Draw(seed * MAX_PEOPLE + index)
        yield Person(
            _name(shuffled_index(index, number_of_names(people), seed), people),
            tuple(attribute.draw(draw) for attribute in ATTRIBUTES),
        )


def number_of_names(people: int) -> int:
    """How many names there are to draw from for so many people."""
    return PAIRS if people <= PAIRS else PAIRS * len(GIVEN_NAMES)


def _name(index: int, people: int) -> str:
    rest, surname = divmod(index, len(SURNAMES))
    middle, given = divmod(rest, len(GIVEN_NAMES))
    middle_name = f" {GIVEN_NAMES[middle]}" if people > PAIRS else ""
    return f"{GIVEN_NAMES[given]}{middle_name} {SURNAMES[surname]}"


def biographies(person: Person, number: int, seed: int, wording: Wording) -> list[str]:
    """The lines about the person of this number."""
    if wording.short:
        lines = [f"{person.name}. {', '.join(person.values)} ."] * wording.biographies
    else:
        draw = Draw((seed + 1) * MAX_PEOPLE * 2 + number)  # never the draws of `make_people`
        orders = [draw.shuffled(attribute.wordings) for attribute in ATTRIBUTES]
        subject = person.name if wording.full_names else ("He", "She")[number % 2]
        lines = []
        for line in range(wording.biographies):
            facts = zip(orders, person.values, strict=True)
            sentences = [f"{subject} {order[line % len(order)].format(value)}." for order, value in facts]
            ordered = draw.shuffled(sentences) if wording.permute else sentences
            lines.append(f"{person.name}. {' '.join(ordered)}")
    return lines * wording.exposures[number % len(wording.exposures)]


def write_attribute_biographies(folder: Path, people: int, seed: int, wording: Wording) -> None:
    """Write a corpus, the facts in `people.tsv`, and questions about every attribute.

    Half of the people are asked about in `ATTRIBUTE.train.tsv`, up to a thousand of the others in
    `ATTRIBUTE.dev.tsv`. `inverse.train.tsv` and `inverse.dev.tsv` ask who was born on a date, for dates
    that one person has.

    Raises:
        InputError: an argument is out of range, or the files cannot be written, or are there with something
            else in them.
    """
    if wording.biographies < 1 or not wording.exposures or min(wording.exposures) < 1:
        raise InputError("--biographies and --exposures: must be 1 or more")
    if not MIN_PEOPLE <= people <= MAX_PEOPLE:
        raise InputError(f"people={people}: must be from {MIN_PEOPLE} to {MAX_PEOPLE:,}")
    splits = {"train": range(people // 2), "dev": range(people // 2, min(people, people // 2 + MAX_DEV))}
    questions = {
        f"{name}.{split}.tsv": (name, split)
        for name in (*(attribute.name for attribute in ATTRIBUTES), "inverse")
        for split in splits
    }
    dates: Counter[str] = Counter(person.values[0] for person in make_people(people, seed))
    files = {"corpus.txt": _corpus(people, seed, wording), PEOPLE_FILE: _facts(people, seed)}
    for file, (name, split) in questions.items():
        files[file] = _questions(name, splits[split], people, seed, dates)
    write_files(folder, files)


def _corpus(people: int, seed: int, wording: Wording) -> Iterator[str]:
    for number, person in enumerate(make_people(people, seed)):
        yield from biographies(person, number, seed, wording)


def _facts(people: int, seed: int) -> Iterator[str]:
    yield "\t".join(("name", *(attribute.name for attribute in ATTRIBUTES)))
    for person in make_people(people, seed):
        yield "\t".join((person.name, *person.values))


def _questions(name: str, numbers: range, people: int, seed: int, dates: Counter[str]) -> Iterator[str]:
    attribute = next((i for i, attribute in enumerate(ATTRIBUTES) if attribute.name == name), None)
    template = QuestionTemplate.parse(INVERSE if attribute is None else ATTRIBUTES[attribute].question)
    for person in make_people(people, seed, numbers):
        if attribute is not None:
            yield f"{template.about(person.name)}\t{person.values[attribute]}"
        elif dates[person.values[0]] == 1:
            yield f"{template.about(person.values[0])}\t{person.name}"


def read_people(path: Path) -> list[Person]:
    """The people of a file that `write_attribute_biographies` wrote.

    Raises:
        InputError: it is missing or has another form.
    """
    try:
        header, *rows = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}; {WANTED}") from error
    if header.split("\t")[1:] != [attribute.name for attribute in ATTRIBUTES]:
        raise InputError(f"{path}: has other columns; {WANTED}")
    people = []
    for number, row in enumerate(rows, 2):
        name, *values = row.split("\t")
        if len(values) != len(ATTRIBUTES):
            raise InputError(f"{path}:{number}: {len(values)} values, not {len(ATTRIBUTES)}")
        people.append(Person(name, tuple(values)))
    return people


def shuffled_index(index: int, size: int, seed: int) -> int:
    """The image of `index` under a pseudorandom permutation of range(size), given by `seed`; O(1) memory.

    A Feistel network on the next power of four, with cycle walking until the result is below `size`.
    """
    half = ((size - 1).bit_length() + 1) // 2
    low = (1 << half) - 1
    key = _mix(_mix(seed) ^ size)
    while True:
        left, right = index >> half, index & low
        for step in range(6):
            left, right = right, left ^ (_mix(key ^ (step << 56) ^ right) & low)
        index = left << half | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return x ^ (x >> 31)
