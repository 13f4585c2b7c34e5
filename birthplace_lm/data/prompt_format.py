"""Cloze prompts: what a model reads of the pretraining text before it must produce the answer."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from birthplace_lm.data.corpora.consistency import title_of
from birthplace_lm.data.vocab import CharVocab


def own_lines(lines: Sequence[str], names: Collection[str] = ()) -> dict[str, list[str]]:
    """The lines of every person, by the name that they begin with: one of `names`, or what looks like one."""
    people: dict[str, list[str]] = {}
    for line in lines:
        title = title_of(line, names)
        name = title.removesuffix(". ") if title else line.partition(". ")[0]
        people.setdefault(name, []).append(line)
    return people


class ClozePrompt(NamedTuple):
    """Ids that the model reads, and ids that it should produce: the answer and what ends it."""

    prompt: list[int]
    target: list[int]


class PromptFormat(Protocol):
    """Makes cloze prompts for a fact, in the form of the pretraining text.

    The list is empty if this form cannot state the fact: `LinePrompt` needs a line that has the answer.
    """

    def cloze_prompts(self, name: str, answer: str, vocab: CharVocab) -> list[ClozePrompt]: ...


@dataclass(frozen=True)
class MaskedPrompt:
    """`PADs NAME. MASK MASK answer MASK`: span corruption without any context, for any name and answer.

    >>> vocab = CharVocab.from_text("Ada. Rome")
    >>> [vocab.decode(ids) for ids in MaskedPrompt(0).cloze_prompts("Ada", "Rome", vocab)[0]]
    ['Ada. ⁇⁇', 'Rome⁇']

    Attributes:
        shift: PADs in front.
    """

    shift: int

    def cloze_prompts(self, name: str, answer: str, vocab: CharVocab) -> list[ClozePrompt]:
        text = vocab.encode_known(vocab.replace_unknown(f"{name}. "))[0]
        if not all(character in vocab for character in answer):
            return []
        target = [*vocab.encode(answer), vocab.mask_id]
        return [ClozePrompt([*[vocab.pad_id] * self.shift, *text, vocab.mask_id, vocab.mask_id], target)]


@dataclass(frozen=True)
class LinePrompt:
    """A line about the person, as it stands, up to the answer; the character behind it ends the answer.

    Attributes:
        lines: of every person, by name.
        shift: PADs in front.
        max_lines: so many different lines of a person count.
    """

    lines: Mapping[str, Sequence[str]]
    shift: int = 0
    max_lines: int = 16

    def cloze_prompts(self, name: str, answer: str, vocab: CharVocab) -> list[ClozePrompt]:
        pads = [vocab.pad_id] * self.shift
        clozes = []
        for line in [*dict.fromkeys(self.lines.get(name, ()))][: self.max_lines]:
            place = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)").search(line, len(name))
            if place is not None and answer and place.end() < len(line):
                ids = vocab.encode(line[: place.end() + 1])
                clozes.append(ClozePrompt([*pads, *ids[: place.start()]], ids[place.start() :]))
        return clozes
