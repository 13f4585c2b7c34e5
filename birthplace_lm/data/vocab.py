"""Character vocabulary, with PAD and MASK."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from birthplace_lm.errors import InputError

PAD = "\u25a1"
MASK = "\u2047"
# Each string has characters that readers take for one another. NFKC covers the full-width forms.
EQUIVALENTS = (
    "'\u2019\u2018\u02bc\u2032`\u00b4",
    '"\u201c\u201d\u201e\u2033',
    "-\u2010\u2011\u2012\u2013\u2014\u2212",
)


class CharVocab:
    r"""One id per character: 0 is PAD, 1 is MASK, the rest are the characters of the corpus by code point.

    Example:
        >>> vocab = CharVocab.from_text("Rome\n")
        >>> vocab.symbols
        ('□', '⁇', '\n', 'R', 'e', 'm', 'o')
        >>> vocab.encode("more⁇")
        Traceback (most recent call last):
        birthplace_lm.errors.InputError: 'r' U+0072 is not in the vocabulary
        >>> vocab.encode("moRe⁇")
        [5, 6, 3, 4, 1]

    Args:
        symbols: All symbols in the order of their ids, PAD and MASK first.

    Raises:
        InputError: The symbols are not distinct single characters that start with PAD and MASK.
    """

    pad, mask = PAD, MASK
    pad_id, mask_id = 0, 1

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if self.symbols[:2] != (PAD, MASK):
            raise InputError(
                f"a vocabulary starts with PAD {PAD!r} and MASK {MASK!r}, not {self.symbols[:2]!r}"
            )
        if len(self._ids) != len(self.symbols) or any(len(symbol) != 1 for symbol in self.symbols):
            raise InputError("the symbols of a vocabulary are single characters, each of them once")

    @classmethod
    def from_text(cls, text: str) -> "CharVocab":
        """The vocabulary of a corpus.

        Raises:
            InputError: The text contains PAD or MASK, which would then mean two things.
        """
        characters = sorted(set(text))
        for reserved in (PAD, MASK):
            if reserved in characters:
                raise InputError(f"{describe(reserved)} is reserved; remove it from the corpus")
        return cls([PAD, MASK, *characters])

    def encode(self, text: str) -> list[int]:
        """One id per character; PAD and MASK may be written as their characters.

        Raises:
            InputError: A character is not in the vocabulary; the message has its code point.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise InputError(f"{describe(error.args[0])} is not in the vocabulary") from None

    def encode_known(self, text: str) -> tuple[list[int], str]:
        """Encodes typed text and drops characters outside the vocabulary.

        PAD and MASK count as unknown here: a MASK in a name would end the question.

        Returns:
            The ids, and the dropped characters in their order (empty if none) for the caller to warn about.
        """
        dropped = "".join(c for c in text if self._ids.get(c, self.pad_id) <= self.mask_id)
        return [i for c in text if (i := self._ids.get(c, self.pad_id)) > self.mask_id], dropped

    def replace_unknown(self, text: str) -> str:
        r"""Replaces characters outside the vocabulary by an equivalent that is in it, if there is one.

        >>> CharVocab.from_text("Sinéad O'Connor?").replace_unknown("Sinéad O\u2019Connor\uff1f")
        "Sinéad O'Connor?"
        """
        return "".join(c if c in self else self._equivalent(c) for c in text)

    def _equivalent(self, character: str) -> str:
        group = next((group for group in EQUIVALENTS if character in group), "")
        candidates = (unicodedata.normalize("NFKC", character), *group)
        return next((text for text in candidates if all(c in self for c in text)), character)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, with PAD and MASK as their characters."""
        return "".join(self.symbols[i] for i in ids)

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data for JSON and checkpoints; `from_dict` is the inverse."""
        return {"symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> "CharVocab":
        """The vocabulary from the output of `to_dict`.

        Raises:
            InputError: The state was not made by `to_dict`.
        """
        symbols = state.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise InputError("a saved vocabulary has its characters in the list 'symbols'")
        return cls(symbols)

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, character: str) -> bool:
        return character in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharVocab) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def __repr__(self) -> str:
        return f"CharVocab({len(self)} symbols)"


def describe(character: str) -> str:
    """A character with its code point: ``'ß' U+00DF``."""
    return f"'{character}' U+{ord(character):04X}"
