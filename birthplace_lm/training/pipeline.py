"""A run from start to end: pretrain, finetune, evaluate."""

import errno
import logging
import math
import shlex
import socket
import ssl
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import BirthplaceError, CheckpointError, InternalError, Interrupted, ProcessLost
from birthplace_lm.inference.evaluate import evaluate
from birthplace_lm.inference.weights import model_state_dict, weights_sha256
from birthplace_lm.models.build import build_model, load_state_dict_checked
from birthplace_lm.models.float32_products import MKL, float32_products
from birthplace_lm.runs import signals
from birthplace_lm.runs.auto_precision import device_kind, slow_precision_warning
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.directory import RunDirectory, link_stage, stage_directory
from birthplace_lm.runs.identity import run_directory
from birthplace_lm.runs.lock import run_lock
from birthplace_lm.runs.metrics import METRICS_FILE, STAGE_RESULT, RunMetrics, StageResult
from birthplace_lm.training.distributed.group import lost_process
from birthplace_lm.training.loggers import uses_tensorboard
from birthplace_lm.training.plan import StagePlan
from birthplace_lm.training.preflight import preflight
from birthplace_lm.training.stage import fit_stage
from birthplace_lm.training.tensorboard import log_hyperparameters

log = logging.getLogger(__name__)


def run(
    config: DictConfig,
    corpus: Corpus,
    wait: bool = False,
    notes: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> RunMetrics:
    """Run what is not finished yet, and return the metrics.

    Args:
        wait: for another process with the same run, whose result is then returned; otherwise it is an error.
        notes: for the log, on how the configuration came about.
        overrides: as they were typed, for log.txt.

    Raises:
        BirthplaceError: for everything that goes wrong; status.json has the message, log.txt the traceback.
    """
    plans = preflight(config, corpus)
    directory = RunDirectory(run_directory(config), config)
    with directory.open_for_run(wait):
        if (finished := directory.metrics) is not None:  # by the process that was waited for
            return finished
        try:
            if overrides:
                log.debug("overrides: %s", shlex.join(overrides))
            for note in notes:
                log.info("%s", note)
            if (warning := slow_precision_warning(config)) is not None:
                log.warning("%s", warning)
            metrics = _run(config, corpus, plans, directory)
            metrics.write(directory.path / METRICS_FILE)
        except Exception as error:
            failure = to_birthplace_error(error, directory.path, config.plugins)
            if isinstance(failure, Interrupted):
                failure = Interrupted(failure.number, failure.where, how_to_resume(config))
            with suppress(OSError):  # the disk may be what is wrong
                log.debug("%s", failure, exc_info=not isinstance(error, Interrupted))
            resumable = isinstance(failure, Interrupted | ProcessLost)
            directory.mark_ended("preempted" if resumable else "failed", failure)
            raise failure from error
        except BaseException as error:  # Ctrl-C in a notebook, where nobody has installed our handlers
            directory.mark_ended("preempted", error)
            raise
        directory.mark_ended("done")
        return metrics


def how_to_resume(config: DictConfig) -> str:
    """How an interrupted run continues: not by its own command where that starts again."""
    if config.resume == "auto" and not config.overwrite:
        return "run the same command to resume"
    return "give resume=auto (without overwrite) to continue"


def to_birthplace_error(error: Exception, folder: Path, plugins: Collection[str] = ()) -> BirthplaceError:
    """Convert any exception of a run to a BirthplaceError.

    In a chain of exceptions (`__context__`) the earliest one is the cause and is reported; the later ones are
    its consequences.

    Args:
        folder: of the run or stage.
        plugins: packages of the user; their innermost line that the cause came through is named.
    """
    if isinstance(error, BirthplaceError):
        return error
    chain = [error]
    while (context := chain[-1].__context__) is not None and not chain[-1].__suppress_context__:
        if not isinstance(context, Exception) or context in chain:
            break
        chain.append(context)
    for cause in reversed(chain):
        if isinstance(cause, BirthplaceError):
            return cause
        if isinstance(cause, OSError) and _is_of_a_file(cause) and not _line_of(cause, plugins):
            return CheckpointError(
                f"{cause.filename or folder}: {cause.strerror}"
            )  # TensorBoard names no file
    if number := signals.pending_signal():
        return Interrupted(number, "during training")  # the signal may have ended a worker
    for cause in chain:
        if (lost := lost_process(cause)) is not None:
            return lost
    messages = [
        f"{type(cause).__name__}: {_first_line(cause)}{_line_of(cause, plugins)}"
        for cause in (chain[-1], *chain[:1])
    ]
    return InternalError(f"{'; then '.join(dict.fromkeys(messages))}; log.txt has the traceback")


def _is_of_a_file(error: OSError) -> bool:
    """Whether the operating system has refused a file, not a connection, such as that of a logger."""
    of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError)
    return not of_network and error.errno not in (None, errno.EHOSTUNREACH, errno.ENETUNREACH)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _line_of(error: Exception, packages: Collection[str]) -> str:
    """The innermost line of these packages that an error came through; empty if there is none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = f"{frame.f_globals.get('__name__')}."
        if module.startswith(tuple(f"{package}." for package in packages)):
            place = f", in {frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"
    return place


def _results_of(run: Path, stages: Sequence[str]) -> dict[str, StageResult]:
    """The results of some stages of another run: where it has ended, also those of a run that it extended."""
    metrics = run / METRICS_FILE
    if metrics.is_file():
        return {name: RunMetrics.read(metrics).stages[name] for name in stages}
    files = {name: stage_directory(run, name) / STAGE_RESULT for name in stages}
    return {name: StageResult.read(file) for name, file in files.items() if file.is_file()}


def _library_of(checkpoint: LoadedCheckpoint, accelerator: str) -> str:
    """What multiplied float32 matrices for it, if this run multiplies on a CPU too."""
    if device_kind(accelerator) != "cpu":
        return MKL
    environment: Mapping[str, str] = checkpoint.metadata.get("environment", {})
    return environment.get("float32_products", MKL)


def _first_device(config: DictConfig) -> str:
    """The first device of the training, which also answers the questions at the end."""
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return "cpu"
    devices = config.trainer.devices
    if not OmegaConf.is_list(devices):  # "2," and "2,3" are indices, 2 is a number of devices
        devices = str(devices).split(",") if "," in str(devices) else [0]
    return f"cuda:{int(devices[0])}"


def _run(config: DictConfig, corpus: Corpus, plans: list[StagePlan], directory: RunDirectory) -> RunMetrics:
    for note in corpus.notes:
        log.info("%s", note)
    for warning in corpus.warnings:
        log.warning("%s", warning)
    results = {name: StageResult() for name in config.stages}
    extended = plans[0].extended_checkpoint
    if extended is not None:
        before = list(results)[: list(results).index(plans[0].name)]
        results |= _results_of(extended.absolute().parents[1], before)
    last: LoadedCheckpoint | None = None  # of the stage before
    for plan in plans:
        directory.mark_stage(plan.name)
        if plan.shared:
            link_stage(directory.path, plan.name, plan.directory)  # its curves belong to this run too
        with run_lock(plan.directory, wait=True) if plan.shared else nullcontext():
            if last is not None:
                plan = replace(plan, init_checkpoint=last.path)
                if config.float32_products == "auto":  # measured again by each process that continues
                    plan = replace(plan, float32_products=_library_of(last, config.trainer.accelerator))
            results[plan.name], last = fit_stage(plan, corpus, last)
    directory.mark_stage("evaluate")
    assert last is not None  # the configuration has at least one stage
    model = build_model(config.model, len(corpus.vocab))
    load_state_dict_checked(model, model_state_dict(last.content), last.path)
    with float32_products(_library_of(last, config.trainer.accelerator)):
        evaluation = evaluate(model, corpus, directory.path, _first_device(config))
    scores = evaluation.scores
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
        stages=results,
        questions=len(corpus.dev.rows),
        evaluate_seconds=evaluation.seconds,
        evaluate_precision=str(model.tok_emb.weight.dtype).removeprefix("torch."),
        surprisal=evaluation.surprisal if math.isfinite(evaluation.surprisal) else None,
        prior_surprisal=evaluation.prior_surprisal,
        extended_from=None if extended is None else str(extended),
    )
    if uses_tensorboard(config.logger):
        log_hyperparameters(config, metrics, directory.path / list(config.stages)[-1])
    return metrics
