"""Locks on folders: one process at a time works in a run or in a shared pretraining."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from birthplace_lm.errors import InputError
from birthplace_lm.runs import signals

log = logging.getLogger(__name__)


@contextmanager
def run_lock(directory: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder; it is let go when the process ends, however it ends.

    Raises:
        InputError: another process holds it and `wait` is false.
        Stopped: a signal has ended the waiting.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as file:
        waited = False
        while not _lock(file.fileno()):
            if not wait:
                raise InputError(f"{directory}: another process is working in it; wait for it")
            if not waited:
                log.info("waiting for the process that works in %s", directory)
            waited = True
            signals.raise_if_signalled(f"while waiting for {directory}")
            time.sleep(0.2)
        yield


def is_locked(directory: Path) -> bool:
    """Whether another process works in a folder; this one must not."""
    try:
        with (directory / "lock").open("r+") as file:
            os.lockf(file.fileno(), os.F_TEST, 0)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def _lock(file: int) -> bool:
    """Try to take the lock of an open file; unlike with flock, forked workers do not hold it on."""
    import fcntl  # here: an export is loaded on systems without it

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
