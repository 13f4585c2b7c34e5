"""Invented people with real birthplaces: the small corpus that ships with the project.

A fair copy of the course's task, in its shape only. Two rules keep it honest:

- A name says nothing about a place. The two are drawn independently: whoever answers without having read the
  corpus can at best name the most frequent place.
- A reader can always tell. Exactly one place of a line is said to be the birthplace, and about half of the
  lines mention another one (studied in, moved to, died in) that a careless reader would fall for.

Only `Random.random` is drawn from: its sequence is the one that Python promises never to change, and the
committed files are compared byte for byte.
"""

import filecmp
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TypeVar

from birthplace_lm.errors import InputError

MIN_PEOPLE = 12
MAX_PEOPLE = 10_000  # well under the number of (given name, surname) pairs, none of which is used twice

GIVEN_NAMES = """
    Abena Adwoa Aleksander Alma Amadou Amina Anders Anneke Anselm Arash Arturo Asel Astrid Aurelio Ayumi Babak
    Bartosz Beatriz Benoit Bilal Birgit Bronwen Bruno Caspar Chiara Chidi Cornelia Dagny Dalia Dariusz
    Delphine Desta Dimitra Dorota Eamon Edda Eino Ekaterina Elif Elio Emeka Emre Enrique Esteban Farah Fatou
    Fergus Fikret Florian Gaspard Gideon Giulia Goran Gudrun Gwilym Hamid Hanna Harriet Haruto Hedda Helmi
    Hoang Ifeoma Ignacio Ilana Ilmari Imani Ingrid Isidor Ivana Jadwiga Jelena Jiro Joaquim Jolanta Josefa
    Jürgen Kaito Kamal Karolina Kavita Kenji Khadija Kwame Laila Laszlo Leila Linh Ljuba Lorenz Lucinda
    Maarten Magda Mahesh Maja Malika Marek Mariko Mateus Meera Mercedes Miriam Moana Naledi Nandini Naoko
    Nikolai Noémie Nuria Odile Olumide Oskar Paavo Padma Paloma Parisa Petra Piroska Priya Rafiq Ragna Rohan
    Rosalind Runa Sanjay Selma Senait Sigrid Simeon Soraya Stellan Sunniva Søren Tadeusz Tamar Tariq Tendai
    Thabo Ulla Urszula Vasco Viktor Wanjiru Wendell Yara Yusuf Zainab Zoltan Zoë
""".split()

SURNAMES = """
    Abara Abebe Achterberg Adeyemi Agnarson Ahlgren Akintola Albescu Almqvist Amundsby Andrassy Apraku Arslan
    Asante Ashdown Avramescu Baptista Barzani Batbayar Beaumarin Bekele Belmonte Berghuis Bhandari Birkeland
    Blackwood Boateng Bogdanov Bonacci Bouchard Brankovic Brightwater Bugge Calderon Cardoso Carmody
    Castellani Chatterjee Chikere Chowdhury Colquhoun Copello-Reyes Cvetkov Dahlin Danjuma Delacroix-Roy
    Demirci Dhillon Dobrev Dragomir Drummond Dvorski Eastaway Egede Ekwueme Elgaard Endicott Erdem Espinoza
    Evensen Fagerholm Falconer Farrokhi Fernando Ferragude Filipek Fjellstad Fonoti Fortescue Fujimaki
    Gallardo Galvan Garibov Gashi Gebremedhin Geraghty Ghorbani Gislason Glowacki Gonzaga Grabowski Grimaldo
    Gunawan Gwandu Haapala Habibi Hakobyan Halloran Hamaguchi-Ito Hartigan Hashemi Hayashida Heikkinen
    Hellstrom Hinojosa Hobbins Holmgren Horvat Huyghe Ibekwe Ilves Imanov Inoguchi Isaksen Ivanek Jankauskas
    Jarvela Jaworek Jayasuriya Joensen Kaboré Kalnins Kamara Karimov Kasprzak Kavanagh Keita Kerimoglu Khumalo
    Kimura Kinoshita Kiprono Kobayashi Kowalczyk Krasniqi Kristoffersen Kuznets Lagerholm Lakatos Langenberg
    Lazarescu Lehtonen Lindqvist Lombardi Lundgaard Mabuza MacAllister Madaki Makoni Malinowska Mansouri
    Marchetti Mbatha McGillivray Medeiros Mensah Mikkelsrud Molnar Montalvo Moravec Mwangi Nakagawa Ndiaye
    Nguema Nieminen Nkosi Novakova Núñez-Arce Obuya Odhiambo Ogunleye Okwuosa Olander Onwudiwe Ormsby Oyelaran
    Ozturk Pacheco Pallister Panagos Papadakis Pellegrin Penhaligon Petkova Pham Pirani-Sanz Popescu Prabhakar
    Quaye Quintero Radev Rahimi Rautio Restrepo Ribeiro Rosenquist Ruzicka Saavedra Sadowski Sakellariou
    Salvatierra Sandoval Sasaki Schaumburg Sebastiani Sekoto Sevigny Shimada Silvestri Sithole Skoglund
    Sokolova Stavros Strandberg Szabados Szalontai Takahara Tamayo Tanaka Teixeira Tennant Thorvald Tiemann
    Toivonen Tounkara Trevelyan Tshabalala Tufuga Uchida Umarov Urbanek Valadares Vanterpool Vasquez Veldkamp
    Vestergaard Vlahos Vukadin Wadsworth Wakefield Waweru Weatherby Wickrama Wojcik Yamashiro Yildiz Zabala
    Zawislak Zellweg Zielonka Zubiri Ångström-Lie Çelikkol Łukasik
""".split()

# The most frequent first. Each is one ASCII word, as in the course, and is part of no other word here.
PLACES = """
    Lisbon Toronto Glasgow Vienna Nairobi Kyoto Dublin Prague Cairo Bergen Boston Hanoi Seville Scotland
    Zagreb Havana Osaka Norway Accra Leipzig Tunis Bristol Denmark Riga Denver Lima Bavaria Turin Geneva Perth
    Porto Utrecht Manila Chile Dakar Tuscany Izmir Ohio Ghent Mumbai Cardiff Tampere Quito Kerala Sicily Lviv
    Brittany Recife Tasmania Busan Cornwall Bogota Kansas Tartu Jamaica Nagoya Marrakesh Bologna Samarkand
    Corsica Fiji Oaxaca Malta Chengdu Uppsala Zanzibar Andalusia Nebraska Mombasa
""".split()
# Running sums of the places' weights. Divisions of whole numbers round alike on every machine, powers do not.
PLACE_ENDS = list(accumulate(1 / (rank + 11) ** 2 for rank in range(1, len(PLACES) + 1)))

# Profession with its article, what one did somewhere, what one did anywhere.
PROFESSIONS = (
    ("a painter", "exhibited in {other} until {then}", "painted {work}"),
    ("a potter", "ran a workshop in {other}", "signed some three hundred bowls"),
    ("a composer", "conducted in {other} for nine seasons", "wrote the opera {work}"),
    ("a novelist", "lived in {other} from {then}", "wrote Who Saw {work}?"),
    ("a poet", "edited a weekly in {other}", "published {work} in {then}"),
    ("a footballer", "played for {other} from {then}", "scored in the cup final of {then}"),
    ("a botanist", "directed the gardens of {other}", "described eleven kinds of moss"),
    ("an engineer", "built the tramways of {other}", "patented a steam valve in {then}"),
    ("an architect", "designed the old library of {other}", "designed more than forty schools"),
    ("an astronomer", "worked at the observatory of {other}", "found two comets in {then}"),
    ("a chess player", "won the {other} open of {then}", "was national champion in {then}"),
    ("a sculptor", "kept a studio in {other}", "carved {work} out of a single oak"),
    ("a judge", "sat at the high court of {other}", "retired from the bench in {then}"),
    ("a physician", "ran a hospital in {other}", "wrote a handbook on fevers"),
    ("a photographer", "opened a studio in {other} in {then}", "took the pictures of {work}"),
    ("an actor", "joined a theatre company in {other}", "played the lead in {work}"),
    ("a violinist", "taught at the conservatory of {other}", "recorded {work} in {then}"),
    ("a cyclist", "won the race around {other} in {then}", "retired after a fall in {then}"),
    ("a linguist", "held a chair in {other} from {then}", "compiled a dictionary of proverbs"),
    ("a mountaineer", "led a climbing club in {other}", "climbed four peaks in {then}"),
    ("a printer", "moved the press to {other} in {then}", "printed the first edition of {work}"),
    ("an economist", "advised the central bank of {other}", "published {work} in {then}"),
)
# What anybody may have done somewhere else.
MOVES = (
    "moved to {other} in {then}",
    "grew up in {other}",
    "studied in {other}",
    "settled in {other} in {then}",
    "went to school in {other}",
    "was brought up in {other}",
)

WORK_ADJECTIVES = """
    Silent Copper Hollow Winter Distant Patient Broken Amber Seventh Crooked Drowned Paper Gentle Burning Salt
""".split()
WORK_NOUNS = """
    Orchard Lantern Harbour Staircase Sparrow Garden Letter Mirror Ferry Bridge Meadow Clock Violin Island
    Tide
""".split()
MONTHS = """
    January February March April May June July August September October November December
""".split()

FORMS = (
    "{name} ({birth} {place} - {death} {other}) was {a_job} who {plain}",
    "{name} ({birth}, in {place} - {death}) was {a_job} who {deed}",
    "{name} (born {birth} in {place}) was {a_job} who {deed}",
    "{name} (b. {year} in {place}) was {a_job} and {deed}",
    "{name} (born {year}, {place}; died {died}, {other}) was {a_job}",
    "{name} ({year} - {died}) was {a_job}, born in {place}, who {deed}",
    "{name} ({birth} - {death}) was {a_job} who was born in {place} and {deed}",
    "Born in {place}, {last} became known as {a_job} who {deed}",
    "Born on {birth} in {place}, {name} was {a_job} who {deed}",
    "Born in {place} in {year} to a family of sailors, {last} {move} and {plain}",
    "{last} was born in {place} in {year}, the youngest of seven children, and {deed}",
    "{last} was {a_job}. Born in {place}, {last} {deed}",
    "A native of {place}, {last} was first a farm hand and then {a_job} who {deed}",
    "{name} was {a_job} and a native of {place}. {last} married in {then} and died in {died}",
    "The {place}-born {job} {name} ({year} - {died}) {deed}",
    "Although born in {place}, {last} {move}, became {a_job} and {plain}",
    "The child of {a_job} from {other}, {last} was born in {place} on {birth}",
    "{name} ({year} - {died}), {a_job}, {deed}. {last} was born in {place}",
    "Known all over {other} as {a_job}, {last} was born in {place} in {year} and {plain}",
    "{last} {move}, {plain} and returned to {place}, where {last} had been born in {year}",
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Person:
    """One row of the corpus: a question, its answer, and the line where a reader finds it."""

    name: str
    place: str
    line: str


class Draw:
    """Choices that are the same in every version of Python, which `choice` and `shuffle` do not promise."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed).random

    def below(self, end: int) -> int:
        return int(self.random() * end)

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        keys = [self.random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def make_biographies(people: int = 420, seed: int = 0, exposures: Sequence[int] = (1,)) -> dict[str, str]:
    """Invents `people` persons: half of them for train, a third for dev, the rest for test.

    Example of a line of `corpus.txt` and its row in a TSV file:
        `Padma Fortescue. Born in Lisbon, Fortescue became known as a sculptor who kept a studio in Ohio .`
        `Where was Padma Fortescue born?<TAB>Lisbon`

    Args:
        people: how many, from `MIN_PEOPLE` to `MAX_PEOPLE`.
        seed: the same seed gives the same files on every machine.
        exposures: how often the line of a person is repeated; the people take turns through the list.

    Returns:
        File name -> text. Without repetitions line i of `corpus.txt` is about row i of train, dev and test
        put end to end. `counterfactual.tsv` has other places of half of dev, for `data.replace`.

    Raises:
        InputError: `people` or a number of exposures is out of range.
    """
    if not exposures or min(exposures) < 1:
        raise InputError(f"exposures={','.join(map(str, exposures))}: must be 1 or more")
    if not MIN_PEOPLE <= people <= MAX_PEOPLE:
        few = "half of them train, and fewer leave too little to score"
        many = f"no name is used twice, and there are {len(GIVEN_NAMES) * len(SURNAMES):,} to draw from"
        reason = few if people < MIN_PEOPLE else many
        raise InputError(f"people={people}: must be from {MIN_PEOPLE} to {MAX_PEOPLE}: {reason}")
    draw = Draw(seed)
    names = draw_names(draw, people)
    sizes = {"train": people // 2, "dev": people // 3}
    sizes["test"] = people - sum(sizes.values())
    files = {"corpus.txt": ""}
    for split, size in sizes.items():
        rows = [make_person(draw, names.pop(), place) for place in draw_places(draw, size)]
        repeated = (row.line for i, row in enumerate(rows) for _ in range(exposures[i % len(exposures)]))
        files["corpus.txt"] += "".join(f"{line}\n" for line in repeated)
        files[f"{split}.tsv"] = "".join(f"Where was {row.name} born?\t{row.place}\n" for row in rows)
        if split == "dev":
            files["counterfactual.tsv"] = "".join(f"{name}\t{place}\n" for name, place in _other_places(rows))
    return files


def _other_places(rows: Sequence[Person]) -> Iterator[tuple[str, str]]:
    """Every second person with the place of the next one who has another."""
    for i in range(0, len(rows), 2):
        places = (row.place for row in (*rows[i:], *rows[:i]))
        other = next((place for place in places if place != rows[i].place), None)
        if other is not None:
            yield rows[i].name, other


def write_biographies(
    folder: Path, people: int = 420, seed: int = 0, exposures: Sequence[int] = (1,)
) -> None:
    """Writes the files of `make_biographies` into `folder`, which is made if need be.

    Raises:
        InputError: an argument is out of range, or the files cannot be written, or are there with something
            else in them.
    """
    files = make_biographies(people, seed, exposures)
    write_files(folder, {name: text.splitlines() for name, text in files.items()})


def write_files(folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Writes text files; nothing changes if one of them exists with other content.

    Args:
        folder: created if it does not exist.
        files: lines without line ends, by file name.

    Raises:
        InputError: a file exists with other content, or the folder cannot be written to.
    """
    written: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in files.items():
            path, new = folder / name, folder / f".{name}.new"
            written.append((new, path))
            with new.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
            if path.exists() and not filecmp.cmp(new, path, shallow=False):
                raise InputError(f"{path}: holds something else; give another folder, or remove it")
        for new, path in written:
            new.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: cannot write: {reason}; give a folder that can be written to") from error
    finally:
        for new, _ in written:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def draw_names(draw: Draw, people: int) -> list[tuple[str, str]]:
    """Distinct (given names, surname) pairs; one person in ten has a second name, one in ten an initial."""
    taken: set[tuple[str, str]] = set()
    names: list[tuple[str, str]] = []
    while len(names) < people:
        given_name, surname = draw.one(GIVEN_NAMES), draw.one(SURNAMES)
        if (given_name, surname) in taken:
            continue
        taken.add((given_name, surname))
        middle = draw.below(10)
        if middle == 0:
            given_name = f"{given_name} {draw.one(GIVEN_NAMES)}"
        elif middle == 1:
            given_name = f"{given_name} {draw.one(SURNAMES)[0]}."
        names.append((given_name, surname))
    return names


def place_at(fraction: float) -> str:
    """The place at this fraction, in [0, 1), of all births. Zipf-like: the first of `PLACES` is widest."""
    return PLACES[bisect(PLACE_ENDS, fraction * PLACE_ENDS[-1])]


def draw_places(draw: Draw, people: int) -> list[str]:
    """One place per person, in random order.

    A systematic sample: evenly spaced fractions from a random start. Each place comes within one of its
    expected number of times: every split has the same skew, and only a rare place can be missing from one.
    """
    start = draw.random()
    return draw.shuffled([place_at((i + start) / people) for i in range(people)])


def draw_date(draw: Draw, year: int) -> str:
    """A day of the year, written in one of two ways."""
    day, month = 1 + draw.below(28), draw.one(MONTHS)
    return f"{day} {month} {year}" if draw.below(2) else f"{month} {day}, {year}"


def make_person(draw: Draw, name: tuple[str, str], place: str) -> Person:
    """Writes the line about one person.

    The other place is drawn as birthplaces are, so that how common a place is does not give the answer away.
    """
    year = 1850 + draw.below(80)
    died = year + 50 + draw.below(42)
    other = place
    while other == place:
        other = place_at(draw.random())
    facts = {
        "other": other,
        "then": str(year + 20 + draw.below(29)),
        "work": f"The {draw.one(WORK_ADJECTIVES)} {draw.one(WORK_NOUNS)}",
    }
    a_job, somewhere, anywhere = draw.one(PROFESSIONS)
    move = draw.one(MOVES)
    deed = draw.one((move, somewhere, anywhere, anywhere, anywhere, anywhere))
    full = " ".join(name)
    sentence = draw.one(FORMS).format(
        **facts,
        name=full.replace(".", ""),  # as in the course's corpus: the title alone keeps the dot of an initial
        last=name[1],
        place=place,
        birth=draw_date(draw, year),
        year=year,
        death=draw_date(draw, died),
        died=died,
        a_job=a_job,
        job=a_job.split(" ", 1)[1],
        move=move.format(**facts),
        deed=deed.format(**facts),
        plain=anywhere.format(**facts),
    )
    return Person(full, place, f"{full}. {sentence} .")
