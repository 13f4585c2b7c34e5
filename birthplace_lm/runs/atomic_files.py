"""Writing files as a whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp"  # ends the names of files that are being written


@contextmanager
def atomic_replace(path: Path, content: bytes | memoryview) -> Iterator[None]:
    """Put `content` on disk beside `path`, read it back, and let it take that place when the block ends.

    Raises:
        OSError: it cannot be written, or reads back otherwise; what was at `path` is there still.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write(temporary, content)
        if sha256_of(temporary) != hashlib.sha256(content).hexdigest():
            raise OSError(errno.EIO, "reads back otherwise than it was written", str(temporary))
        yield
        os.replace(temporary, path)
        _sync(path.parent)  # else the new name may be lost with the power
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk shows in os.write, which knows of no name
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Replace a small file."""
    with atomic_replace(path, text.encode()):
        pass


def remove_temp_files(directory: Path) -> None:
    """Remove what a killed process was writing; only for who holds the folder's lock."""
    for left in directory.glob(f"*{TEMPORARY}"):
        left.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes | memoryview) -> None:
    # Not through a link that somebody has laid there to a file of ours elsewhere.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(directory: Path) -> None:
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
