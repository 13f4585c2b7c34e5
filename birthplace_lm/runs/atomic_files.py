"""Atomic writing of files: a reader sees the old content or the new, also after a crash."""

import errno
import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # suffix of files that are being written
# What file systems answer to a call that they do not have: Colab's Drive, exFAT, SMB, some NFS mounts.
UNSUPPORTED = {
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EPERM,
}


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time that this process gives it."""
    log.warning("%s", message)


@contextmanager
def atomic_replace(path: Path, content: bytes | memoryview) -> Iterator[None]:
    """Write `content` to a temporary file beside `path`, verify it, and rename it when the block ends.

    Raises:
        OSError: it cannot be written, or reads back differently; `path` is unchanged.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write(temporary, content)
        if sha256_of(temporary) != hashlib.sha256(content).hexdigest():
            raise OSError(errno.EIO, "reads back differently from what was written", str(temporary))
        yield
        os.replace(temporary, path)
        _sync_folder(path.parent)  # otherwise a power failure can undo the rename
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # os.write knows no name to report for a full disk
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Replace a small file atomically."""
    with atomic_replace(path, text.encode()):
        pass


def remove_temp_files(directory: Path) -> None:
    """Remove what a killed process was writing. The caller must hold the lock of the folder."""
    for path in directory.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes | memoryview) -> None:
    # O_NOFOLLOW: a symbolic link at the temporary name must not lead to another file. Windows has no such
    # flag, and would translate line ends without O_BINARY.
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        _sync(descriptor, "files")
    finally:
        os.close(descriptor)


def _sync_folder(directory: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _sync(descriptor, "folders")
    finally:
        os.close(descriptor)


def _sync(descriptor: int, kind: str) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(
            f"this file system cannot sync {kind} ({error.strerror}): a power failure, but no crash of the"
            " program, may lose what was saved last"
        )
