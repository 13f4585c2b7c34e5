"""A run from start to end: pretrain, finetune, evaluate."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus, check_data_hashes
from birthplace_lm.errors import BirthplaceError, CheckpointError, InternalError, Interrupted
from birthplace_lm.inference.evaluate import evaluate
from birthplace_lm.inference.weights import load_weights, weights_sha256
from birthplace_lm.models.build import build_model
from birthplace_lm.runs import checkpoint, signals
from birthplace_lm.runs.directory import RunDirectory
from birthplace_lm.runs.identity import pretraining_directory, run_directory
from birthplace_lm.runs.lock import run_lock
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, StageResult
from birthplace_lm.training.preflight import preflight
from birthplace_lm.training.stage import fit_stage
from birthplace_lm.training.tensorboard import log_hyperparameters

log = logging.getLogger(__name__)


def run(config: DictConfig, corpus: Corpus) -> RunMetrics:
    """Do what is not done yet, and return the metrics.

    Raises:
        BirthplaceError: whatever goes wrong; status.json says so too, and log.txt has the traceback.
    """
    preflight(config, corpus)
    directory = RunDirectory(run_directory(config), config)
    with directory.opened():
        try:
            metrics = _run(config, corpus, directory)
            metrics.write(directory.path / METRICS_FILE)
        except Exception as error:
            known = _known(error, directory.path)
            with suppress(OSError):  # the disk may be what is wrong
                log.debug("%s", known, exc_info=not isinstance(error, Interrupted))
            directory.end("preempted" if isinstance(known, Interrupted) else "failed", known)
            raise known from error
        except BaseException as error:  # Ctrl-C in a notebook, where nobody has installed our handlers
            directory.end("preempted", error)
            raise
        directory.end("done")
        return metrics


def _known(error: Exception, folder: Path) -> BirthplaceError:
    if isinstance(error, BirthplaceError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return CheckpointError(f"{error.filename or folder}: {error.strerror}")  # TensorBoard gives no name
    if number := signals.pending_signal():
        return Interrupted(number, "before it could be heeded")  # it may have ended a worker of ours
    said = str(error).strip().splitlines()
    return InternalError(f"{type(error).__name__}: {said[0] if said else ''}; log.txt has the traceback")


def _run(config: DictConfig, corpus: Corpus, directory: RunDirectory) -> RunMetrics:
    for note in corpus.notes:
        log.info("%s", note)
    for warning in corpus.warnings:
        log.warning("%s", warning)
    weights = None if config.init_from is None else Path(config.init_from).expanduser()
    spent = {name: StageResult() for name in config.stages}
    for name, stage in config.stages.items():
        if not stage.enabled:
            continue
        directory.begin(name)
        folder = directory.path / name
        if name == "pretrain":
            shared = pretraining_directory(config)
            _link(folder, shared)  # before it begins: its curves belong to this run too
            with run_lock(shared, wait=True):
                spent[name] = fit_stage(name, config, corpus, shared, weights)
        else:
            spent[name] = fit_stage(name, config, corpus, folder, weights)
        weights = checkpoint.checkpoint_path(folder, spent[name].steps)
        check_data_hashes(checkpoint.load(weights)["birthplace_lm"]["data"], corpus.sha256)
    directory.begin("evaluate")
    assert weights is not None  # the configuration has at least one stage
    model = build_model(config.model, len(corpus.vocab))
    load_weights(model, weights)
    scores, seconds = evaluate(model, corpus, directory.path, on_gpu=config.trainer.accelerator != "cpu")
    metrics = RunMetrics(
        **config.labels,
        seed=config.seed,
        data_sha256=corpus.sha256,
        weights_sha256=weights_sha256(model),
        vocab_size=len(corpus.vocab),
        parameters=model.num_parameters,
        dev=scores["dev"],
        baseline=scores["baseline"],
        test=scores.get("test"),
        holdout=scores.get("holdout"),
        majority_answer=corpus.majority,
        stages=spent,
        questions=len(corpus.dev.rows),
        evaluate_seconds=seconds,
    )
    log_hyperparameters(config, metrics, directory.path / "finetune")
    return metrics


def _link(link: Path, target: Path) -> None:
    """Let the run directory show the shared pretraining."""
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
