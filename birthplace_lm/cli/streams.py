"""Standard streams that do not fail the work when nobody can read them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO


class LenientStream:
    """A text stream that goes to /dev/null from the first write that fails.

    A write fails when the reader of a pipe has ended (`| head`), the disk is full, or the terminal is gone.
    """

    def __init__(self, stream: TextIO, tolerated: type[OSError]) -> None:
        """Errors that are not `tolerated`, which may be set later, are raised once."""
        self._stream = stream
        self.tolerated = tolerated

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, output: Callable[[], object]) -> None:
        try:
            output()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is buffered goes there too, and what children print
            os.close(null)
            if not isinstance(error, self.tolerated):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_standard_streams(tolerated: type[OSError] = OSError) -> None:
    """Make stdout and stderr lenient, and escape characters that their encoding lacks.

    A stream that was closed at the start (`2>&-`) becomes /dev/null: otherwise the next file that is opened
    would get its number, and messages would be written into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if isinstance(stream, LenientStream):
            stream.tolerated = tolerated
            continue
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        with suppress(AttributeError):  # not every replacement of a stream has it
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, LenientStream(stream, tolerated))
