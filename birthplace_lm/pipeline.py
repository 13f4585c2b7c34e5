"""A run from start to end: pretrain, finetune, evaluate. The only caller of `instantiate`."""

import json
import logging
import os
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from birthplace_lm import checkpoint, signals
from birthplace_lm.callbacks import Checkpoints, Meter, SampleAnswers, StepLimit, progress
from birthplace_lm.data.corpus import Corpus, check_unchanged
from birthplace_lm.data.module import BatchDataModule, Loading
from birthplace_lm.error import BirthplaceError, CheckpointError, InputError, Stopped, UnexpectedError
from birthplace_lm.evaluate import evaluate, log_hyperparameters, weights_sha256
from birthplace_lm.files import write_text
from birthplace_lm.models.gpt import GPT
from birthplace_lm.modules import CharacterModel
from birthplace_lm.processes import fit_in_processes
from birthplace_lm.runs import (
    RunDirectory,
    identity,
    identity_sha256,
    locked,
    pretraining_directory,
    run_directory,
)
from birthplace_lm.schedules import Clock

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its news would fill the log

STAGE_RESULT = "result.json"
SHORTENED_BY = ("max_time", "limit_train_batches", "overfit_batches", "fast_dev_run")


@dataclass(frozen=True)
class StageResult:
    """What a stage has cost and reached; `characters` are real ones, PAD not included."""

    steps: int = 0
    epochs: int = 0
    characters: int = 0
    seconds: float = 0.0
    loss: float | None = None


def run(config: DictConfig, corpus: Corpus) -> dict[str, Any]:
    """Do what is not done yet, and return the metrics.

    Raises:
        BirthplaceError: whatever goes wrong; status.json says so too, and log.txt has the traceback.
    """
    _rehearse(config, corpus)
    directory = RunDirectory(run_directory(config), config)
    with directory.opened():
        try:
            metrics = _run(config, corpus, directory)
            directory.write_json("metrics.json", metrics)
        except Exception as error:
            known = _known(error, directory.path)
            with suppress(OSError):  # the disk may be what is wrong
                log.debug("%s", known, exc_info=not isinstance(error, Stopped))
            directory.end("preempted" if isinstance(known, Stopped) else "failed", known)
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
    if number := signals.received():
        return Stopped(number, "before it could be heeded")  # it may have ended a worker of ours
    said = str(error).strip().splitlines()
    return UnexpectedError(f"{type(error).__name__}: {said[0] if said else ''}; log.txt has the traceback")


def _run(config: DictConfig, corpus: Corpus, directory: RunDirectory) -> dict[str, Any]:
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
            with locked(shared, wait=True):
                spent[name] = fit_stage(name, config, corpus, shared, weights)
            _link(folder, shared)
        else:
            spent[name] = fit_stage(name, config, corpus, folder, weights)
        weights = checkpoint.path_of(folder, spent[name].steps)
        check_unchanged(checkpoint.load(weights)["birthplace_lm"]["data"], corpus.sha256)
    directory.begin("evaluate")
    assert weights is not None  # the configuration has at least one stage
    model = build_model(config, len(corpus.vocab))
    load_weights(model, weights)
    found, seconds = evaluate(model, corpus, directory.path, on_gpu=config.trainer.accelerator != "cpu")
    metrics = {
        **config.names,
        "seed": config.seed,
        "data_sha256": corpus.sha256,
        "weights_sha256": weights_sha256(model),
        "vocab_size": len(corpus.vocab),
        "parameters": model.parameters_total,
        **found,
        "stages": {
            **{stage: asdict(result) for stage, result in spent.items()},
            "evaluate": {"names": len(corpus.dev.rows), "seconds": seconds},
        },
    }
    log_hyperparameters(config, metrics, directory.path / "finetune")
    return metrics


def _rehearse(config: DictConfig, corpus: Corpus) -> None:
    """Build what every stage needs, so that a bad value of the last shows before the first has trained."""
    _check_size(config, len(corpus.vocab))
    model = build_model(config, len(corpus.vocab))
    try:
        trainer = _bare_trainer(config)
    except InstantiationException as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        asked = ", ".join(
            f"{key}={config.trainer[key]}" for key in ("accelerator", "devices", "precision", "strategy")
        )
        raise InputError(f"trainer: {reason} ({asked})") from error
    if config.trainer.precision.startswith("16") and trainer.strategy.root_device.type == "cpu":
        raise InputError(
            f"trainer.precision={config.trainer.precision}: needs a GPU, and this is a CPU; take bf16-mixed"
        )
    for key in ("init_from", "resume"):
        if config[key] not in (None, "auto", "never"):
            try:
                _check_given(model, Path(config[key]).expanduser(), config, corpus)
            except CheckpointError as error:
                raise CheckpointError(f"{key}={error}") from error
    for stage in config.stages.values():
        if stage.enabled:
            rows = _data_module(config, stage, corpus).train_rows
            rows_per_step = stage.batch_size * trainer.num_devices * trainer.accumulate_grad_batches
            clock = Clock(rows, rows_per_step, config.model.block_size - 1)
            epochs = config.trainer.max_epochs or stage.max_epochs
            instantiate(stage.schedule)(
                total=clock.characters(clock.steps_of(epochs, config.trainer.max_steps))
            )
            try:
                instantiate(config.optimizer)(model=model, lr=stage.learning_rate)
            except ValueError as error:  # torch checks its own numbers
                raise InputError(f"optimizer: {error}") from error


def _check_size(config: DictConfig, vocab_size: int) -> None:
    """Check that training fits into memory: weights, gradients and two moments, before any of it is there."""
    with torch.device("meta"):
        parameters = build_model(config, vocab_size).parameters_total
    needed, there = 16 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"model: {parameters:,} parameters need {needed >> 30} GiB to train, and this machine has"
            f" {there >> 30} GiB; take a smaller model.n_embd or model.n_layer"
        )


def _check_given(model: GPT, path: Path, config: DictConfig, corpus: Corpus) -> None:
    """Check that a checkpoint the user names fits: its weights, its characters, its stage."""
    content = checkpoint.load(path)["birthplace_lm"]
    if content["stage"] not in config.stages:
        raise CheckpointError(f"{path}: of the stage {content['stage']}, which does not exist")
    there, here = content["vocab"], list(corpus.vocab.symbols)
    if there != here:
        more, fewer = "".join(sorted({*there} - {*here})), "".join(sorted({*here} - {*there}))
        raise CheckpointError(
            f"{path}: its vocabulary of {len(there)} is not the {len(here)} symbols of the corpus (only"
            f" there: {more[:20]!r}, only here: {fewer[:20]!r}); give the data.* it was trained on"
        )
    load_weights(model, path)
    if path == Path(config.resume).expanduser() and not config.stages[content["stage"]].enabled:
        raise CheckpointError(f"{path}: of the stage {content['stage']}, which this run does not have")


def _data_module(config: DictConfig, stage: DictConfig, corpus: Corpus) -> BatchDataModule:
    loading = Loading(stage.batch_size, stage.num_workers, config.seed, stage.shuffle, stage.pool)
    data: BatchDataModule = instantiate(stage.data)(
        corpus=corpus, loading=loading, block_size=config.model.block_size
    )
    return data


def fit_stage(name: str, config: DictConfig, corpus: Corpus, folder: Path, start: Path | None) -> StageResult:
    """Train one stage to its end, from its newest checkpoint if it has one, else from `start`.

    With several devices the training happens in as many processes of this program.
    """
    result = folder / STAGE_RESULT
    if not (result.is_file() and checkpoint.verified(checkpoint.path_of(folder, _read(result).steps))):
        folder.mkdir(parents=True, exist_ok=True)
        resume = _resume_from(name, folder, config.resume)
        if resume is None and result.is_file() and config.resume == "auto":
            raise CheckpointError(
                f"{folder}: finished, but its checkpoint is gone; remove {STAGE_RESULT} there"
            )
        step = 0 if resume is None else checkpoint.load(resume)["global_step"]
        for damaged in checkpoint.tidy(folder, step):
            log.warning("a damaged checkpoint was set aside as %s", damaged)
        if resume is not None:
            log.info("%s: resuming after step %d, from %s", name, step, resume)
        probe = _bare_trainer(config)
        if probe.strategy.launcher is None:
            train_stage(name, config, corpus, folder, start, resume)
        else:
            fit_in_processes(probe.num_devices, name, config, folder, start, resume)
    return _read(result)


def _read(result: Path) -> StageResult:
    return StageResult(**json.loads(result.read_text(encoding="utf-8")))


def train_stage(
    name: str, config: DictConfig, corpus: Corpus, folder: Path, start: Path | None, resume: Path | None
) -> None:
    """What every process of a stage does; leaves the last checkpoint and the result in `folder`.

    Args:
        start: a checkpoint whose weights to begin with.
        resume: one to go on from, which beats `start`.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    stage = config.stages[name]
    model = build_model(config, len(corpus.vocab))
    if resume is None and start is not None:
        load_weights(model, start)
    data = _data_module(config, stage, corpus)
    module = CharacterModel(
        stage=name,
        model=model,
        vocab=corpus.vocab,
        optimizer=instantiate(config.optimizer),
        learning_rate=stage.learning_rate,
        schedule=instantiate(stage.schedule),
        max_steps=config.trainer.max_steps,
        seed=config.seed,
        may_skip=config.nonfinite_budget if config.on_nonfinite == "skip" else 0,
        folder=folder,
    )
    meter = Meter(name)
    saved = {
        "format": checkpoint.FORMAT,
        "stage": name,
        "config": OmegaConf.to_yaml(config),
        "config_sha256": identity_sha256(identity(config)),
        "vocab": list(corpus.vocab.symbols),
        "data": corpus.sha256,
    }
    callbacks = [
        meter,
        SampleAnswers(name),
        *progress(name, config.trainer.enable_progress_bar),
        StepLimit(),
        Checkpoints(folder, config.checkpoint.every_n_steps, config.checkpoint.keep, saved, resume),
    ]
    trainer = _trainer(config, stage, folder, callbacks, resume)
    log.info("%s: %d parameters, %d rows an epoch", name, model.parameters_total, data.train_rows)
    with warnings.catch_warnings():
        # Lightning looks for a state in the loader; ours is in the data module.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning and torch
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    whole = not any(config.trainer[key] for key in SHORTENED_BY)
    if whole and trainer.global_step < module.total_steps:
        raise UnexpectedError(f"{name} ended after step {trainer.global_step} of {module.total_steps}")
    if trainer.is_global_zero:
        spent = meter.state_dict()
        result = StageResult(
            trainer.global_step, trainer.current_epoch, spent["characters"], spent["seconds"], spent["loss"]
        )
        write_text(folder / STAGE_RESULT, json.dumps(asdict(result), indent=2) + "\n")


def build_model(config: DictConfig, vocab_size: int) -> GPT:
    """The untrained network of a configuration."""
    return GPT(vocab_size=vocab_size, **instantiate(config.model))


def load_weights(model: GPT, path: Path) -> None:
    """Put the weights of one of our checkpoints into a model.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    weights = weights_for(model, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # of a kind that cannot be copied: sparse, quantized, without values
        raise CheckpointError(f"{path}: its weights are no plain tensors") from error


def weights_for(model: GPT, path: Path) -> dict[str, Tensor]:
    """The weights of one of our checkpoints, by the names they have in a model.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    state = checkpoint.load(path)["state_dict"]
    weights = {key.removeprefix("model."): value for key, value in state.items()}
    if found := checkpoint.differences(weights, model.state_dict()):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise CheckpointError(
            f"{path}: is of another model: {'; '.join(found[:3])}{more}; give its attention= and model.*"
        )
    return weights


def _resume_from(stage: str, folder: Path, resume: str) -> Path | None:
    """The checkpoint that was asked for, if it is of this stage; else the newest whole one of the folder."""
    if resume == "never":
        return None
    if resume != "auto":
        asked = Path(resume).expanduser()
        if checkpoint.load(asked)["birthplace_lm"]["stage"] == stage:
            return asked
    return checkpoint.newest_in(folder)


def _bare_trainer(config: DictConfig) -> L.Trainer:
    """One that knows what devices there are, to train nothing with."""
    every = config.trainer.check_val_every_n_epoch or 1
    trainer: L.Trainer = instantiate(
        config.trainer, check_val_every_n_epoch=every, logger=False, enable_checkpointing=False
    )
    return trainer


def _trainer(
    config: DictConfig, stage: DictConfig, folder: Path, callbacks: list[L.Callback], resume: Path | None
) -> L.Trainer:
    own = {
        key: config.trainer[key] if config.trainer[key] is not None else stage[key]
        for key in ("max_epochs", "check_val_every_n_epoch")
    }
    _await_new_second(folder)
    # "" keeps the event files of a stage in one folder; what was logged after the checkpoint comes again.
    purge = 0 if resume is None else checkpoint.load(resume)["global_step"]
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=purge)
    trainer: L.Trainer = instantiate(
        config.trainer,
        **own,
        max_steps=-1,  # see StepLimit
        enable_progress_bar=False,  # Lightning's; ours is among the callbacks
        default_root_dir=str(folder),
        logger=logger,
        callbacks=callbacks,
        plugins=[checkpoint.VerifiedCheckpointIO()],
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    # Lightning's handlers would end a run with code 0 within a window of accumulated batches; see `signals`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _await_new_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which hold the time in whole seconds."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _link(link: Path, target: Path) -> None:
    """Let the run directory show the shared pretraining."""
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
