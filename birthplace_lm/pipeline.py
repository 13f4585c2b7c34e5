"""A run from start to end: pretrain, finetune, evaluate. The only caller of `instantiate`."""

import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from birthplace_lm import checkpoint
from birthplace_lm.callbacks import Checkpoints, Meter, SampleAnswers, progress
from birthplace_lm.data.corpus import Corpus, check_unchanged
from birthplace_lm.data.module import BatchDataModule, Loading
from birthplace_lm.error import BirthplaceError, CheckpointError, InputError
from birthplace_lm.evaluate import evaluate, log_hyperparameters
from birthplace_lm.files import write_text
from birthplace_lm.models.gpt import GPT
from birthplace_lm.modules import CharacterModel
from birthplace_lm.processes import fit_in_processes
from birthplace_lm.runs import RunDirectory, locked, pretraining_directory, run_directory

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its news would fill the log

STAGE_RESULT = "result.json"


@dataclass(frozen=True)
class StageResult:
    """What a stage has cost and reached; `characters` are real ones, PAD not included."""

    steps: int = 0
    epochs: int = 0
    characters: int = 0
    seconds: float = 0.0
    loss: float | None = None


def run(config: DictConfig, corpus: Corpus) -> dict[str, Any]:
    """Do what is not done yet, and return the metrics."""
    directory = RunDirectory(run_directory(config), config)
    with directory.opened():
        try:
            metrics = _run(config, corpus, directory)
        except BirthplaceError as error:
            directory.status("failed", error=str(error))
            raise
        except Exception:
            log.debug("traceback", exc_info=True)
            directory.status("failed", error="see log.txt")
            raise
        directory.write_json("metrics.json", metrics)
        directory.status("done")
        return metrics


def _run(config: DictConfig, corpus: Corpus, directory: RunDirectory) -> dict[str, Any]:
    for note in corpus.notes:
        log.info("%s", note)
    for warning in corpus.warnings:
        log.warning("%s", warning)
    _rehearse(config, corpus)
    weights = None if config.init_from is None else Path(config.init_from).expanduser()
    spent = {name: StageResult() for name in config.stages}
    for name, stage in config.stages.items():
        if not stage.enabled:
            continue
        directory.status("running", name)
        folder = directory.path / name
        if name == "pretrain":
            shared = pretraining_directory(config)
            with locked(shared, wait=True):
                spent[name] = fit_stage(name, config, corpus, shared, weights)
            _link(folder, shared)
        else:
            spent[name] = fit_stage(name, config, corpus, folder, weights)
        weights = checkpoint.saved_in(folder)[0]
        check_unchanged(checkpoint.load(weights)["birthplace_lm"]["data"], corpus.sha256)
    directory.status("running", "evaluate")
    assert weights is not None  # the configuration has at least one stage
    model = build_model(config, len(corpus.vocab))
    load_weights(model, weights)
    found, seconds = evaluate(model, corpus, directory.path, on_gpu=config.trainer.accelerator != "cpu")
    metrics = {
        **config.names,
        "seed": config.seed,
        "data_sha256": corpus.sha256,
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
    model = build_model(config, len(corpus.vocab))
    try:
        instantiate(config.trainer, logger=False, enable_checkpointing=False)
    except InstantiationException as error:
        raise InputError(f"trainer: {str(error.__cause__).splitlines()[0]}") from error
    for given in (config.init_from, config.resume if config.resume not in ("auto", "never") else None):
        if given is not None:
            _check_given(model, Path(given).expanduser(), config, corpus)
    for stage in config.stages.values():
        if stage.enabled:
            _data_module(config, stage, corpus)
            instantiate(stage.schedule)(total=10**9)
            try:
                instantiate(config.optimizer)(model=model, lr=stage.learning_rate)
            except ValueError as error:  # torch checks its own numbers
                raise InputError(f"optimizer: {error}") from error


def _check_given(model: GPT, path: Path, config: DictConfig, corpus: Corpus) -> None:
    """Check that a checkpoint the user names fits: its weights, its characters, its stage."""
    load_weights(model, path)
    content = checkpoint.load(path)["birthplace_lm"]
    if content["vocab"] != list(corpus.vocab.symbols):
        raise CheckpointError(f"{path}: its vocabulary is not that of the corpus; name the corpus it is of")
    if path == Path(config.resume).expanduser() and not config.stages[content["stage"]].enabled:
        raise CheckpointError(f"resume={path}: of the stage {content['stage']}, which this run does not have")


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
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if config.resume == "never":
            for old in checkpoint.saved_in(folder):
                checkpoint.VerifiedCheckpointIO().remove_checkpoint(old)
        probe: L.Trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False)
        if probe.strategy.launcher is None:
            train_stage(name, config, corpus, folder, start)
        else:
            fit_in_processes(probe.num_devices, name, config, folder, start)
    return StageResult(**json.loads(result.read_text(encoding="utf-8")))


def train_stage(name: str, config: DictConfig, corpus: Corpus, folder: Path, start: Path | None) -> None:
    """What every process of a stage does; leaves the last checkpoint and the result in `folder`."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    stage = config.stages[name]
    model = build_model(config, len(corpus.vocab))
    resume = _resume_from(name, folder, config.resume)
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
        seed=config.seed,
    )
    meter = Meter(name)
    saved = {
        "stage": name,
        "config": OmegaConf.to_yaml(config),
        "vocab": list(corpus.vocab.symbols),
        "data": corpus.sha256,
    }
    callbacks = [
        meter,
        SampleAnswers(name),
        *progress(name, config.trainer.enable_progress_bar),
        Checkpoints(folder, config.checkpoint.every_n_steps, config.checkpoint.keep, saved),
    ]
    trainer = _trainer(config, stage, folder, callbacks, resume)
    log.info("%s: %d parameters, %d rows an epoch", name, model.parameters_total, data.train_rows)
    with warnings.catch_warnings():
        # Lightning looks for a state in the loader; ours is in the data module.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning and torch
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
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
    state = checkpoint.load(path).get("state_dict", {})
    weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise CheckpointError(f"{path}: is of another model: {reason} ...") from error


def _resume_from(stage: str, folder: Path, resume: str) -> Path | None:
    """The checkpoint that was asked for, if it is of this stage; else the newest whole one of the folder."""
    if resume not in ("auto", "never"):
        asked = Path(resume).expanduser()
        if checkpoint.load(asked).get("birthplace_lm", {}).get("stage") == stage:
            return asked
    candidates = checkpoint.saved_in(folder)
    for path in candidates:
        if checkpoint.verified(path):
            log.info("resuming from %s", path)
            return path
        log.warning("%s is damaged; trying the one before", path)
    if candidates:
        raise CheckpointError(f"{folder}: no checkpoint is whole; remove them to start over")
    return None


def _trainer(
    config: DictConfig, stage: DictConfig, folder: Path, callbacks: list[L.Callback], resume: Path | None
) -> L.Trainer:
    own = {
        key: config.trainer[key] if config.trainer[key] is not None else stage[key]
        for key in ("max_epochs", "check_val_every_n_epoch")
    }
    # "" keeps the event files of a stage in one folder; what was logged after the checkpoint comes again.
    purge = None if resume is None else checkpoint.step_of(resume)
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=purge)
    trainer: L.Trainer = instantiate(
        config.trainer,
        **own,
        enable_progress_bar=False,  # Lightning's; ours is among the callbacks
        default_root_dir=str(folder),
        logger=logger,
        callbacks=callbacks,
        plugins=[checkpoint.VerifiedCheckpointIO()],
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    return trainer


def _link(link: Path, target: Path) -> None:
    """Let the run directory show the shared pretraining."""
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
