"""Errors that a user can cause, with the exit code of train.py and of the commands for each."""

import json
import signal


class BirthplaceError(Exception):
    """An error that is shown as one line, without a traceback.

    The message names the place, what is wrong and how to fix it:
    ``train.tsv:3: no tabs; expected 'QUESTION<TAB>ANSWER'``. Non-printing characters (newlines,
    terminal escapes, undecodable bytes of a path) are escaped, so that every message is one line.
    """

    exit_code: int = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else _escape(c) for c in message))

    def to_json(self) -> str:
        """The error for another process."""
        return json.dumps([type(self).__name__, *self.__reduce__()[1]])

    @staticmethod
    def from_json(text: str) -> "BirthplaceError":
        """The error that `to_json` wrote."""
        name, *arguments = json.loads(text)
        kinds = {kind.__name__: kind for kind in (*BirthplaceError.__subclasses__(), ProcessLost)}
        error: BirthplaceError = kinds[name](*arguments)
        return error


class InputError(BirthplaceError):
    """Bad input or configuration."""


class NonFiniteError(BirthplaceError):
    """A loss, gradient or weight is not finite."""

    exit_code = 3


class CheckpointError(BirthplaceError):
    """A checkpoint is unreadable or untrusted, or a disk is not writable."""

    exit_code = 4


class InternalError(BirthplaceError):
    """A bug in this project or in a library: no input should cause it."""

    exit_code = 1


class ProcessLost(InternalError):
    """Another process of the run has ended without a word; the same command resumes the run."""

    exit_code = 5


class Interrupted(BirthplaceError):
    """A signal ended the run; `advice` is how to resume it."""

    def __init__(self, number: int, where: str, advice: str = "run the same command to resume") -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name} {where}; {advice}")
        self.number = number
        self.where = where
        self.advice = advice
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type, tuple[int, str, str]]:
        return type(self), (self.number, self.where, self.advice)  # exceptions are pickled between processes


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
