"""Run directories: config.yaml, status.json, log.txt and the folders of the stages."""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from birthplace_lm.config.compose import RUN_CONFIG, load_saved, to_saved
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs import signals
from birthplace_lm.runs.atomic_files import (
    TEMPORARY,
    UNSUPPORTED,
    atomic_write_text,
    remove_temp_files,
    warn_once,
)
from birthplace_lm.runs.identity import first_difference, hashed_config
from birthplace_lm.runs.lock import run_lock
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics

BOOTSTRAP_FILES = {"lock", f"{RUN_CONFIG}{TEMPORARY}"}  # left by a process that was killed at its start
LINKED_FOLDER_LIMIT = 4096  # bytes of a file that stands for a link


def check_run_dir(path: Path, config: DictConfig) -> None:
    """Check that a folder is new, empty, or belongs to this configuration; nothing is written.

    Raises:
        InputError: it belongs to another configuration, or holds other files.
    """
    saved = path / RUN_CONFIG
    if saved.is_file():
        requested, existing = hashed_config(config), hashed_config(load_saved(saved, config.plugins))
        if requested != existing:
            key = first_difference(existing, requested)
            raise InputError(f"run_dir={path}: belongs to a run with another {key}; give another run_dir")
    elif path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} <= BOOTSTRAP_FILES):
        raise InputError(f"run_dir={path}: contains other files; give an empty or a new folder")


class RunDirectory:
    """One run on disk.

    The `state` in status.json is `running` (with a `pid`; if no such process lives, it was killed),
    `preempted` by a signal, `failed` with an `error`, or `done`. The same command resumes all but the last.
    """

    def __init__(self, path: Path, config: DictConfig) -> None:
        self.path = path
        self.config = config
        self._stage: str | None = None

    @contextmanager
    def open_for_run(self, wait: bool = False) -> Iterator["RunDirectory"]:
        """Lock the folder, write its config.yaml, and copy the log to its log.txt until the block ends.

        Args:
            wait: for another process that works in it; otherwise that is an error.

        Raises:
            InputError: it belongs to another configuration or process, or holds other files.
            CheckpointError: it is not writable.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(run_lock(self.path, wait))
                self._claim()
                stack.enter_context(_logging_to(self.path / "log.txt"))
            except OSError as error:
                raise CheckpointError(f"run_dir={self.path}: {error.strerror or error}") from error
            yield self

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do for the same command."""
        return self.metrics is not None

    @property
    def metrics(self) -> RunMetrics | None:
        """Metrics of a finished run; None before, and if metrics.json is unreadable: a run rewrites it."""
        if self.status.get("state") != "done":
            return None
        try:
            return RunMetrics.read(self.path / METRICS_FILE)
        except CheckpointError:
            return None

    def mark_stage(self, stage: str) -> None:
        """Record in status.json that a stage begins.

        Raises:
            Interrupted: a signal has arrived.
        """
        self._stage = stage
        signals.raise_if_signalled(f"before {stage}")
        self._status("running")

    def mark_ended(self, state: str, error: BaseException | None = None) -> None:
        """Record in status.json how the run ended."""
        reason = None if error is None else str(error) or type(error).__name__
        with suppress(OSError):  # a full disk must not hide `error`
            self._status(state, reason)

    @property
    def status(self) -> dict[str, Any]:
        """See `read_status`."""
        return read_status(self.path)

    @property
    def status_mtime(self) -> float | None:
        """When status.json was last written; None if it does not exist."""
        try:
            return (self.path / "status.json").stat().st_mtime
        except OSError:
            return None

    def _status(self, state: str, error: str | None = None) -> None:
        content = {"state": state, "stage": self._stage, "error": error, "pid": os.getpid()}
        atomic_write_text(self.path / "status.json", json.dumps(content, indent=2) + "\n")

    def _claim(self) -> None:
        check_run_dir(self.path, self.config)
        if self.config.overwrite:
            self._clear()
        remove_temp_files(self.path)
        remove_temp_files(self.path / "predictions")
        atomic_write_text(self.path / RUN_CONFIG, to_saved(self.config))

    def _clear(self) -> None:
        last = self.path / RUN_CONFIG  # until then a process that is killed can claim the folder again
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == last):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty if it is missing or unreadable."""
    try:
        content = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def stage_directory(run: Path, stage: str) -> Path:
    """The folder of a stage; a shared pretraining lies outside the run directory, see `link_stage`."""
    link = run / stage
    if not link.is_file() or link.stat().st_size > LINKED_FOLDER_LIMIT:
        return link
    return run / link.read_text(encoding="utf-8").strip()


def link_stage(run: Path, stage: str, target: Path) -> None:
    """Let a run directory show a stage that lies elsewhere.

    By a symbolic link, or without those by a text file with the relative path, as git does it.
    """
    link = run / stage
    if link.is_dir() and not link.is_symlink():
        return
    link.unlink(missing_ok=True)
    path = os.path.relpath(target.resolve(), run.resolve())
    try:
        link.symlink_to(path, target_is_directory=True)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(
            f"this file system has no symbolic links ({error.strerror}): text files hold the paths instead,"
            f" and TensorBoard shows the curves of {stage} only below {target.parent}"
        )
        atomic_write_text(link, path + "\n")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Append the log of this package, of Lightning and of `warnings` to a file, with times."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("birthplace_lm", "lightning.pytorch", "py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with suppress(OSError):  # a full disk refuses the rest again
            handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Let a full disk end the run; `logging` would print a traceback and continue."""
        error = sys.exception()
        if isinstance(error, OSError) and threading.current_thread() is threading.main_thread():
            raise OSError(error.errno, error.strerror, self.baseFilename) from error
