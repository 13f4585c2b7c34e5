"""What a stage needs besides the network, and a rehearsal that all of it can be made."""

import os
from pathlib import Path

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.datamodule import BatchDataModule, LoaderConfig
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.weights import load_weights
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.training.distributed.fsdp import resolve_strategy
from birthplace_lm.training.lr_schedules import TrainingClock


def build_datamodule(config: DictConfig, stage: DictConfig, corpus: Corpus) -> BatchDataModule:
    """The data of a stage."""
    loading = LoaderConfig(
        stage.batch_size, stage.num_workers, config.seed, stage.shuffle, stage.length_bucket
    )
    try:
        data: BatchDataModule = instantiate(stage.dataset)(
            corpus=corpus, loading=loading, block_size=config.model.block_size
        )
    except ValueError as error:  # the message begins with the name of the argument
        name = next(name for name, other in config.stages.items() if other is stage)
        raise InputError(f"stages.{name}.dataset.{error}") from error
    return data


def probe_trainer(config: DictConfig) -> L.Trainer:
    """One that knows what devices there are, to train nothing with."""
    every = config.trainer.check_val_every_n_epoch or 1
    trainer: L.Trainer = instantiate(
        config.trainer,
        strategy=resolve_strategy(config.trainer.strategy),
        check_val_every_n_epoch=every,
        logger=False,
        enable_checkpointing=False,
        plugins=[LightningEnvironment()],  # of Slurm's tasks, which Lightning would count, we know nothing
    )
    return trainer


def preflight(config: DictConfig, corpus: Corpus) -> None:
    """Build what every stage needs, so that a bad value of the last shows before the first has trained.

    Raises:
        InputError, CheckpointError: what is wrong, and with which key.
    """
    _check_size(config, len(corpus.vocab))
    model = build_model(config.model, len(corpus.vocab))
    try:
        trainer = probe_trainer(config)
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
            rows = build_datamodule(config, stage, corpus).train_rows
            rows_per_step = stage.batch_size * trainer.num_devices * trainer.accumulate_grad_batches
            clock = TrainingClock(rows, rows_per_step, config.model.block_size - 1)
            epochs = config.trainer.max_epochs or stage.max_epochs
            instantiate(stage.schedule)(
                total_positions=clock.positions_seen(clock.steps_of(epochs, config.trainer.max_steps))
            )
            try:
                instantiate(config.optimizer)(model=model, lr=stage.learning_rate)
            except ValueError as error:  # torch checks its own numbers
                raise InputError(f"optimizer: {error}") from error


def _check_size(config: DictConfig, vocab_size: int) -> None:
    """Check that training fits into memory: weights, gradients and two moments, before any of it is there."""
    with torch.device("meta"):
        parameters = build_model(config.model, vocab_size).num_parameters
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
