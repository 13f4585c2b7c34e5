"""Run directories: named after what determines the result, locked while somebody works in them."""

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

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import load_saved
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs import signals
from birthplace_lm.runs.atomic_files import TEMPORARY, atomic_write_text, remove_temp_files
from birthplace_lm.runs.identity import first_difference, hashed_config
from birthplace_lm.runs.lock import run_lock
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics

BOOTSTRAP_FILES = {"lock", f"config.yaml{TEMPORARY}"}  # left by who was killed before the folder was theirs


def check_run_dir(path: Path, config: DictConfig) -> None:
    """Check that a folder is new, empty, or of this very run; touches nothing.

    Raises:
        InputError: it belongs to a run of another configuration, or to something else.
    """
    saved = path / "config.yaml"
    if saved.is_file():
        ours, theirs = hashed_config(config), hashed_config(load_saved(saved))
        if ours != theirs:
            key = first_difference(theirs, ours)
            raise InputError(f"run_dir={path}: belongs to a run with another {key}; give another run_dir")
    elif path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} <= BOOTSTRAP_FILES):
        raise InputError(f"run_dir={path}: holds something else; give an empty or a new folder")


class RunDirectory:
    """One run on disk: config.yaml, status.json, log.txt and what the stages leave.

    status.json tells the truth: `running` with a `pid` that lives, or was killed; `preempted` by a signal;
    `failed` with its `error`; `done`. In all but the last the same command goes on.
    """

    def __init__(self, path: Path, config: DictConfig) -> None:
        self.path = path
        self.config = config
        self._stage: str | None = None

    @contextmanager
    def opened(self) -> Iterator["RunDirectory"]:
        """Lock the folder and make it ours; what is logged until the end goes into its log.txt too.

        Raises:
            InputError: the folder belongs to another configuration, to something else, or to another process.
            CheckpointError: it cannot be written.
        """
        with ExitStack() as held:
            try:
                held.enter_context(run_lock(self.path, wait=False))
                self._claim()
                held.enter_context(_logging_to(self.path / "log.txt"))
            except OSError as error:
                raise CheckpointError(f"run_dir={self.path}: {error.strerror or error}") from error
            yield self

    @property
    def finished(self) -> bool:
        """Whether the same command has nothing left to do."""
        return self.metrics is not None

    @property
    def metrics(self) -> RunMetrics | None:
        """Of a finished run; None before, and if metrics.json cannot be read: it is then written again."""
        if self.status.get("state") != "done":
            return None
        try:
            return RunMetrics.read(self.path / METRICS_FILE)
        except CheckpointError:
            return None

    def begin(self, stage: str) -> None:
        """Say what is being done from now on, unless a signal has asked to end.

        Raises:
            Stopped: it has.
        """
        self._stage = stage
        signals.raise_if_signalled(f"before {stage}")
        self._status("running")

    def end(self, state: str, error: BaseException | None = None) -> None:
        """Say how it ended."""
        reason = None if error is None else str(error) or type(error).__name__
        with suppress(OSError):  # on a full disk the error itself has to come through
            self._status(state, reason)

    @property
    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none that can be read."""
        try:
            content = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def written(self) -> float | None:
        """When status.json was written; None if it never was."""
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
        atomic_write_text(self.path / "config.yaml", OmegaConf.to_yaml(self.config))

    def _clear(self) -> None:
        last = self.path / "config.yaml"  # with it the folder stays ours, should we be killed meanwhile
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == last):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Everything we, Lightning and `warnings` have to say, with times, at the end of a file."""
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
        with suppress(OSError):  # what a full disk has not taken
            handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Let a full disk end the run; logging would print a traceback and go on."""
        error = sys.exception()
        if isinstance(error, OSError) and threading.current_thread() is threading.main_thread():
            raise OSError(error.errno, error.strerror, self.baseFilename) from error
