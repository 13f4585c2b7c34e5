"""The question template "Where was NAME born?", and how text is normalised before it is read."""

import re
import unicodedata

ZERO_WIDTH = dict.fromkeys([0x200B, 0x2060, 0xFEFF])
# Direction marks and soft hyphens are characters of the course's corpus and stay there. In a question they
# come from copy and paste, and a place that ends in one could never be answered.
INVISIBLE = ZERO_WIDTH | dict.fromkeys([0x00AD, 0x200E, 0x200F])

_QUESTION = re.compile(r"Where was (.+) born\?", re.DOTALL)


def birthplace_question(name: str) -> str:
    """The question about a name: the inverse of `name_from_question`."""
    return f"Where was {name} born?"


def name_from_question(question: str) -> str:
    """NAME of "Where was NAME born?"; any other question is returned as it is."""
    match = _QUESTION.fullmatch(question)
    return match[1] if match else question


def normalise(text: str) -> str:
    """Normalises a question, place or typed name as the reader does."""
    return unicodedata.normalize("NFC", text.translate(INVISIBLE)).strip()
