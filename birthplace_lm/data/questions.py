"""The question template "Where was NAME born?", and how every text is normalised before a model reads it."""

import re
import unicodedata

ZERO_WIDTH = dict.fromkeys([0x200B, 0x2060, 0xFEFF])
# Characters without a shape: soft hyphens, direction marks and invisible operators. They come from copy and
# paste. Zero-width joiners are not among them, because they change the letters around them.
INVISIBLE = ZERO_WIDTH | dict.fromkeys(
    (0x00AD, 0x061C, 0x180E, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2061, 0x206A))
)

_QUESTION = re.compile(r"Where was (.+) born\?", re.DOTALL)


def birthplace_question(name: str) -> str:
    """The question about a name: the inverse of `name_from_question`."""
    return f"Where was {name} born?"


def name_from_question(question: str) -> str:
    """NAME of "Where was NAME born?"; any other question is returned as it is."""
    match = _QUESTION.fullmatch(question)
    return match[1] if match else question


def normalise(text: str) -> str:
    """NFC, without invisible characters; any white space is one space, and none at either end."""
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def question_about(typed: str) -> str:
    """The normalised question about a typed name; a whole question is taken as it is."""
    return birthplace_question(name_from_question(normalise(typed)))
