"""Where an answer comes from: the person's own line, a real place of train, or nowhere."""

import difflib
import re
from collections.abc import Collection, Sequence

RETRIEVED, OTHER_PLACE, MADE_UP = "in the person's own line", "another place of train", "made up"


def origin(answer: str, name: str, lines: Sequence[str], places: Collection[str]) -> str:
    """Classify the source of an answer: RETRIEVED, OTHER_PLACE or MADE_UP.

    RETRIEVED: one of the person's lines has it after the name. OTHER_PLACE: it is one of the train answers.

    Args:
        lines: the person's own lines.
        places: the train answers.
    """
    if fact_position(answer, name, lines) is not None:
        return RETRIEVED
    return OTHER_PLACE if answer in places else MADE_UP


def is_right_in_some_sense(answer: str, gold: str, lines: Sequence[str]) -> bool:
    """Lenient: right, or a part or a whole of the gold place by the person's own line.

    The rule: the line has both, with nothing but commas, "in" or "near" and at most one more name between
    them: "Lagos, Nigeria" or "Leeds, West Yorkshire, England".
    """
    if answer == gold:
        return True
    between = r"(?:\s*,\s*(?:[^\W\d_a-z][\w'-]*(?: [^\W\d_a-z][\w'-]*)*\s*,\s*)?|\s+(?:in|near)\s+)"
    for first, second in ((answer, gold), (gold, answer)):
        pattern = rf"(?<!\w){re.escape(first)}{between}{re.escape(second)}(?!\w)"
        if first and second and any(re.search(pattern, line) for line in lines):
            return True
    return False


def is_misspelled(answer: str, gold: str, places: Collection[str]) -> bool:
    """No place of train, and nearer to the right place than to all of those, such as "Minneapol".

    Nearness is difflib's ratio, which must be 0.6 at least.

    Args:
        places: the train answers.
    """
    if answer == gold or answer in places:
        return False
    return difflib.get_close_matches(answer, sorted({*places, gold}), 1) == [gold]


def fact_position(place: str, name: str, lines: Sequence[str]) -> int | None:
    """Where a place first stands behind the name in the person's own line, as whole words, in characters."""
    if not place:
        return None
    pattern = re.compile(rf"(?<!\w){re.escape(place)}(?!\w)")
    return min((match.start() for line in lines if (match := pattern.search(line, len(name)))), default=None)


def name_parts(name: str) -> list[str]:
    """The given name and the surname alone, of a name of two words or more."""
    words = name.split()
    return [words[0], words[-1]] if len(words) > 1 else []


def repetitions(name: str, lines: Sequence[str]) -> int:
    """The most times that the last word of the name stands in one of the person's own lines."""
    surname = name.split()[-1] if name.split() else name
    pattern = re.compile(rf"(?<!\w){re.escape(surname)}(?!\w)")
    return max((len(pattern.findall(line)) for line in lines), default=0)
