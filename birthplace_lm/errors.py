"""The errors a user can cause, each with the exit code that train.py and the commands give for it."""

import signal


class BirthplaceError(Exception):
    """An error that is shown as one line, without a traceback.

    The message names the place, what is wrong and how to fix it:
    ``train.tsv:3: no tabs; expected 'Where was NAME born?<TAB>PLACE'``. Characters that do not print
    (newlines, terminal escapes, undecodable bytes of a path) are escaped, so a message is one line whatever
    it quotes.
    """

    exit_code: int = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else _escape(c) for c in message))


class InputError(BirthplaceError):
    """Bad input or configuration."""


class NonFiniteError(BirthplaceError):
    """A loss, gradient or weight that is not finite."""

    exit_code = 3


class CheckpointError(BirthplaceError):
    """A checkpoint that cannot be read or trusted, or a disk that cannot be written."""

    exit_code = 4


class InternalError(BirthplaceError):
    """Something that no input should cause: a mistake of ours, or of a library."""

    exit_code = 1


class Interrupted(BirthplaceError):
    """A signal has ended the run, which the same command goes on with."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} {where}; the same command goes on from there"
        )
        self.number = number
        self.where = where
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.number, self.where)  # it comes back from other processes


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
