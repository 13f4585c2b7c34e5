"""Locks on folders: one process at a time works in a run or in a shared pretraining."""

import errno
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs import signals
from birthplace_lm.runs.atomic_files import UNSUPPORTED, warn_once

log = logging.getLogger(__name__)

_held: set[tuple[int, str]] = set()  # process and real path of every folder that it has or is about to lock
_mutex = threading.Lock()  # of `_held`


@contextmanager
def run_lock(directory: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder. The system releases it when the process ends, also when it is killed.

    On a file system without locks (Colab's Drive, some network mounts) a lock in the temporary folder of this
    host stands for it.

    Raises:
        InputError: another process, or another thread of this one, holds it and `wait` is false.
        Interrupted: a signal arrived while waiting.
        CheckpointError: neither file system has locks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    identity = _identity(directory)
    while not _reserve(identity):  # the system would give this process the same lock again
        if not wait:
            raise InputError(f"{directory}: this process is already working in it; wait until that ends")
        signals.raise_if_signalled(f"while waiting for {directory}")
        time.sleep(0.2)
    with ExitStack() as files:
        files.callback(_held.discard, identity)  # last, when the file is closed and its lock released
        descriptor = files.enter_context((directory / "lock").open("a")).fileno()
        try:
            acquired = _try_lock(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warn_once(
                f"this file system has no file locks ({error.strerror}): only processes of this host exclude"
                " one another; do not start the same run on two hosts"
            )
            descriptor = files.enter_context(_host_lock(directory).open("a")).fileno()
            acquired = _try_host_lock(descriptor, directory)
        if not acquired and not wait:
            raise InputError(f"{directory}: another process is working in it; wait until it ends")
        if not acquired:
            log.info("waiting for the process that works in %s", directory)
        while not acquired:
            signals.raise_if_signalled(f"while waiting for {directory}")
            time.sleep(0.2)
            acquired = _try_lock(descriptor)
        yield


def is_locked(directory: Path) -> bool:
    """Whether a process, this one included, works in a folder."""
    if _identity(directory) in _held:
        return True  # closing any descriptor of the file would release the lock of this process
    try:
        return _is_locked(directory / "lock")
    except OSError as error:
        return error.errno in UNSUPPORTED and _is_locked(_host_lock(directory))


def _reserve(identity: tuple[int, str]) -> bool:
    """Claim a folder for this thread; False if another thread has it."""
    with _mutex:
        if identity in _held:
            return False
        _held.add(identity)
        return True


def _identity(directory: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(directory)


def _try_lock(descriptor: int) -> bool:
    """Try to lock an open file. POSIX locks, unlike flock's, are not inherited by forked data workers."""
    import fcntl  # Windows lacks it, where exports are loaded

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            os.lockf(file.fileno(), os.F_TEST, 0)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        raise
    return False


def _try_host_lock(descriptor: int, directory: Path) -> bool:
    try:
        return _try_lock(descriptor)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: no file locks there nor in {tempfile.gettempdir()} ({error.strerror}); set"
            " runs_root= to a local disk, or TMPDIR to one"
        ) from error


def _host_lock(directory: Path) -> Path:
    """The lock file of this host for a folder whose file system has no locks."""
    folder = Path(tempfile.gettempdir()) / f"birthplace_lm-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()
