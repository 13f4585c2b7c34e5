"""The question template, and how every text is normalised before a model reads it."""

import unicodedata
from dataclasses import dataclass

from birthplace_lm.data.vocab import MASK, PAD, describe
from birthplace_lm.errors import InputError

ZERO_WIDTH = dict.fromkeys([0x200B, 0x2060, 0xFEFF])
# Characters without a shape: soft hyphens, direction marks and invisible operators. They come from copy and
# paste. Zero-width joiners are not among them, because they change the letters around them.
INVISIBLE = ZERO_WIDTH | dict.fromkeys(
    (0x00AD, 0x061C, 0x180E, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2061, 0x206A))
)

NAME = "{name}"
MAX_ANSWER_LENGTH = 32  # characters that a model writes at most


@dataclass(frozen=True)
class QuestionTemplate:
    """The wording of all questions of a run, around the name of a person.

    >>> question = QuestionTemplate.parse("Where was {name} born?")
    >>> question.about("Ada Bo")
    'Where was Ada Bo born?'
    >>> question.name_in("Where was Ada Bo born?")
    'Ada Bo'

    Attributes:
        prefix, suffix: the text before and after the name.
    """

    prefix: str
    suffix: str

    @classmethod
    def parse(cls, text: str) -> "QuestionTemplate":
        """The template of a text with one `{name}`, normalised as questions are.

        Raises:
            InputError: `{name}` is missing or repeated, or the text contains PAD or MASK.
        """
        prefix, *suffixes = normalise(text).split(NAME)
        if len(suffixes) != 1:
            raise InputError(
                f"data.question={text}: has {len(suffixes) or 'no'} {NAME}; write {NAME} once, where the"
                f" name stands: 'Where was {NAME} born?'"
            )
        for reserved in (PAD, MASK):
            if reserved in text:
                raise InputError(f"data.question={text}: {describe(reserved)} is reserved; remove it")
        return cls(prefix, suffixes[0])

    @property
    def text(self) -> str:
        """The template as it is written."""
        return self.about(NAME)

    def about(self, name: str) -> str:
        """The question about a name."""
        return f"{self.prefix}{name}{self.suffix}"

    def name_in(self, question: str) -> str | None:
        """The name in a question; None if the question has another wording. The inverse of `about`."""
        end = len(question) - len(self.suffix)
        fits = question.startswith(self.prefix) and question.endswith(self.suffix) and end > len(self.prefix)
        return question[len(self.prefix) : end] if fits else None

    def name_or_text(self, question: str) -> str:
        """The name in a question; the whole text if the question has another wording."""
        return self.name_in(question) or question

    def about_typed(self, text: str) -> str:
        """The normalised question about a typed name; a whole question is taken as it is."""
        normalised = normalise(text)
        return self.about(self.name_or_text(normalised))


def normalise(text: str) -> str:
    """NFC, without invisible characters; any white space is one space, and none at either end."""
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def answer_room(block_size: int, max_answer_length: int = MAX_ANSWER_LENGTH) -> int:
    """Characters of the block that are reserved for an answer: at most half of it."""
    return min(max_answer_length, block_size // 2)
