"""Python API of training: what `python train.py` does, in a notebook or a script."""

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig

from birthplace_lm.errors import InputError, Interrupted
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.runs import signals
from birthplace_lm.runs.find import find_run
from birthplace_lm.runs.metrics import RunMetrics
from birthplace_lm.runs.nearest import nearest_run
from birthplace_lm.training import pipeline

log = logging.getLogger("birthplace_lm")
_one_run = threading.RLock()  # two would share random numbers and the library for float32 products


@dataclass(frozen=True)
class FinishedRun:
    """A run on disk that is done.

    Attributes:
        path: the run directory, absolute.
        metrics: the content of its metrics.json, for example `metrics.dev.exact_match`.
        plugins: packages that its configuration named.
    """

    path: Path
    metrics: RunMetrics
    plugins: tuple[str, ...] = ()

    @cached_property
    def model(self) -> TrainedModel:
        """The trained model, read from its last checkpoint at the first use."""
        return TrainedModel.from_run(self.path, self.plugins)


def train(config: DictConfig) -> FinishedRun:
    """Pretrain, finetune and evaluate, or continue where the run stopped; a finished run returns at once.

    In the main thread, Ctrl-C ends the run: the current step is finished and saved, then KeyboardInterrupt is
    raised. Calls from several threads run one after another.

    Args:
        config: from `compose`.

    Raises:
        BirthplaceError: what is wrong, in one line; log.txt in the run directory has the traceback.
        KeyboardInterrupt: Ctrl-C was pressed; the message says how to resume.
        TypeError: `config` is not a DictConfig.
    """
    if not isinstance(config, DictConfig):
        raise TypeError(f"train takes a configuration, not {config!r:.40}; compose([...]) makes one")
    if config.dry_run:
        raise InputError("dry_run=True: train() has no result without training; leave it out")
    with _one_run:
        return _train(config)


def _train(config: DictConfig) -> FinishedRun:
    directory, corpus, notes = find_run(config)
    config = directory.config
    metrics = None if config.overwrite else directory.metrics
    if metrics is None:
        try:
            with signals.recorded(), _messages_shown():
                if not directory.status and (note := nearest_run(config)):
                    log.info("%s", note)
                metrics = pipeline.run(config, corpus, notes=notes)
        except KeyboardInterrupt as stop:  # its traceback is of no interest
            saved = isinstance(stop.__context__, Interrupted)
            message = stop.__context__ if saved else f"stopped; {pipeline.how_to_resume(config)}"
            raise KeyboardInterrupt(str(message)) from None
    return FinishedRun(directory.path.absolute(), metrics, tuple(config.plugins))


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Print what a run logs, as `python train.py` does; warnings of libraries go to log.txt alone."""
    level, propagate = log.level, log.propagate
    captured = warnings.showwarning.__module__ == "logging"  # by the caller
    handler = logging.StreamHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)  # for log.txt
    log.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(captured)
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
