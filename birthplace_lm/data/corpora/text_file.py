"""Strict reader for untrusted UTF-8 text files: bounded memory, errors with file:line."""

import codecs
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from birthplace_lm.data.vocab import MASK, PAD, describe
from birthplace_lm.errors import InputError

CHUNK_BYTES = 65_536
MAX_LINE_BYTES = 100_000
MAX_MARKS = 30  # accents on one letter; the limit of Unicode's stream-safe format (UAX #15)

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_REFUSED = {
    PAD: "is reserved for PAD; remove it",
    MASK: "is reserved for MASK; remove it",
    "\ufffd": "marks a character that a conversion has lost; restore it",
} | {
    # U+0085 is a line end of some systems, and counts as white space
    chr(code): "is a control character, as Windows-1252 text read as Latin-1 has; convert the file to UTF-8"
    for code in range(0x80, 0xA0)
    if code != 0x85
}


class TextFile:
    r"""A UTF-8 file read once in bounded memory: its lines, its hash, and counts of what was normalised.

    Example:
        >>> file = TextFile("train.tsv", key="data.train")
        >>> [file.tidy(line, number, invisible={}) for number, line in file.lines()]
        ['Where was Ada Lovelace born?\tLondon']
        >>> file.notes
        ['train.tsv: line ends of CR or CRLF: 1']

    Args:
        path: The file.
        key: The config key that named it, for messages.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        self.key = key
        self.counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash of the bytes read so far."""
        return self._digest.hexdigest()

    @property
    def notes(self) -> list[str]:
        """The counts, one line each, for the log."""
        return [f"{self.path}: {what}: {count}" for what, count in self.counts.items() if count]

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yields the number of each line, from 1, and its text without the line end (LF, CRLF or CR).

        Raises:
            InputError: The file cannot be read, is not UTF-8 text, or has a line longer than MAX_LINE_BYTES.
        """
        number, pending = 1, b""
        for chunk in self._chunks():
            pieces = (pending + chunk).splitlines(keepends=True)
            # A CR at the end of a chunk may be the first half of CRLF: keep its line for the next chunk.
            pending = b"" if pieces[-1].endswith(b"\n") else pieces.pop()
            for raw in pieces:
                yield number, self._line(raw, number)
                number += 1
            self._decode(pending, number, final=False)  # binary data may have no line end
        if pending:
            yield number, self._line(pending, number)

    def tidy(self, text: str, number: int, invisible: dict[int, None]) -> str:
        """Normalises to NFC, removes invisible characters and outer spaces, and counts the changes.

        Args:
            text: A line, or a field of one.
            number: Of the line, from 1, for messages.
            invisible: The characters to remove, as a table of `str.translate`.

        Raises:
            InputError: a character is reserved or refused, or a letter has more than MAX_MARKS accents.
        """
        visible = text.translate(invisible)
        if _most_marks(visible) > MAX_MARKS:
            raise InputError(
                f"{self.path}:{number}: over {MAX_MARKS} combining marks on a letter; remove them"
            )
        composed = unicodedata.normalize("NFC", visible)
        stripped = composed.strip()
        self.counts["stripped of invisible characters"] += visible != text
        self.counts["normalised to NFC"] += composed != visible
        self.counts["stripped of outer spaces"] += stripped not in ("", composed)
        for character, reason in _REFUSED.items():
            if character in stripped:
                raise InputError(f"{self.path}:{number}: {describe(character)} {reason}")
        return stripped

    def _chunks(self) -> Iterator[bytes]:
        try:
            # Without O_NONBLOCK, opening a FIFO waits for a writer. Checking before would leave a race.
            with open(self.path, "rb", buffering=0, opener=_open_nonblocking) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(None, "FIFO, socket or device")
                while chunk := file.read(CHUNK_BYTES):
                    self._digest.update(chunk)
                    yield chunk
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            none = ", or data.test=null for none" if self.key == "data.test" else ""
            raise InputError(
                f"{self.key}={self.path}: cannot read: {reason}; give a regular, readable file{none}"
            ) from error

    def _line(self, raw: bytes, number: int) -> str:
        text = self._decode(raw, number)
        line = text.rstrip("\r\n")
        self.counts["line ends of CR or CRLF"] += text.endswith(("\r", "\r\n"))
        self.counts["no newline at the end"] += line == text
        if number == 1 and line.startswith("\ufeff"):
            self.counts["byte-order mark removed"] += 1
            line = line[1:]
        return line

    def _decode(self, raw: bytes, number: int, final: bool = True) -> str:
        try:
            text, _ = codecs.utf_8_decode(raw, "strict", final)
        except UnicodeDecodeError as error:
            place = f"{self.path}:{number}:{error.start + 1}"
            raise InputError(
                f"{place}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
            ) from None
        if control := _CONTROL.search(raw):
            place = f"{self.path}:{number}:{control.start() + 1}"
            raise InputError(
                f"{place}: binary data (byte 0x{raw[control.start()]:02x}); give a UTF-8 text file"
            )
        if len(raw.rstrip(b"\r\n")) > MAX_LINE_BYTES:
            raise InputError(f"{self.path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; break the line up")
        return text


def _most_marks(text: str) -> int:
    """Most combining marks on one letter; the time to normalise grows with its square."""
    most = marks = 0
    for character in "" if text.isascii() else text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        most = max(most, marks)
    return most


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
