"""How the text of pretraining tells a fact: what a model reads before it must produce the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from birthplace_lm.data.masking.answer_likelihood import TITLE
from birthplace_lm.data.vocab import CharVocab


def own_lines(lines: Sequence[str]) -> dict[str, list[str]]:
    """The lines of every person, by the name that they begin with."""
    people: dict[str, list[str]] = {}
    for line in lines:
        title = TITLE.match(line)
        name = title[0].removesuffix(". ") if title else line.partition(". ")[0]
        people.setdefault(name, []).append(line)
    return people


class Telling(NamedTuple):
    """Ids that the model reads, and ids that it should produce: the answer and what ends it."""

    prompt: list[int]
    target: list[int]


class TextForm(Protocol):
    """Makes the tellings of a fact: prompts in the form of the pretraining text, each with its target.

    The list is empty if this form cannot state the fact: `LineForm` needs a line that has the answer.
    """

    def tellings(self, name: str, answer: str, vocab: CharVocab) -> list[Telling]: ...


@dataclass(frozen=True)
class MaskedForm:
    """`PADs NAME. MASK MASK answer MASK`: span corruption without any context, for any name and answer.

    >>> vocab = CharVocab.from_text("Ada. Rome")
    >>> [vocab.decode(ids) for ids in MaskedForm(0).tellings("Ada", "Rome", vocab)[0]]
    ['Ada. ⁇⁇', 'Rome⁇']

    Attributes:
        shift: PADs in front.
    """

    shift: int

    def tellings(self, name: str, answer: str, vocab: CharVocab) -> list[Telling]:
        text = vocab.encode_known(vocab.replace_unknown(f"{name}. "))[0]
        if not all(character in vocab for character in answer):
            return []
        target = [*vocab.encode(answer), vocab.mask_id]
        return [Telling([*[vocab.pad_id] * self.shift, *text, vocab.mask_id, vocab.mask_id], target)]


@dataclass(frozen=True)
class LineForm:
    """A line about the person, as it stands, up to the answer; the character behind it ends the answer.

    Attributes:
        lines: of every person, by name.
        shift: PADs in front.
        max_lines: so many different lines of a person count.
    """

    lines: Mapping[str, Sequence[str]]
    shift: int = 0
    max_lines: int = 16

    def tellings(self, name: str, answer: str, vocab: CharVocab) -> list[Telling]:
        pads = [vocab.pad_id] * self.shift
        tellings = []
        for line in [*dict.fromkeys(self.lines.get(name, ()))][: self.max_lines]:
            place = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)").search(line, len(name))
            if place is not None and answer and place.end() < len(line):
                ids = vocab.encode(line[: place.end() + 1])
                tellings.append(Telling([*pads, *ids[: place.start()]], ids[place.start() :]))
        return tellings
