"""Preflight: take every decision of every stage, and check it, before the first stage starts."""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from birthplace_lm.config.compose import parse_saved, to_saved
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.datamodule import BatchDataModule, LoaderConfig
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import build_model, check_state_dict
from birthplace_lm.models.float32_products import MKL
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.auto_precision import faster_library
from birthplace_lm.runs.identity import (
    TRAINER_OVERRIDES,
    config_hash,
    first_difference,
    hashed_config,
    named_checkpoint,
    pretraining_directory,
    run_directory,
)
from birthplace_lm.training.components import (
    build_datamodule,
    checked_kind,
    configured_callbacks,
    errors_name,
    probe_trainer,
    training_clock,
)
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.loggers import check_installed
from birthplace_lm.training.plan import StagePlan

# What may change when a finished stage is extended; the stages after it may change altogether.
EXTENDABLE_STAGE = ("max_epochs", "learning_rate", "schedule", "check_val_every_n_epoch")
EXTENDABLE_TRAINER = ("max_steps", "max_time", "limit_val_batches", "val_check_interval")


def preflight(config: DictConfig, corpus: Corpus) -> list[StagePlan]:
    """Plan the stages of a run; nothing is written.

    Raises:
        InputError, CheckpointError: what is wrong, and with which key.
    """
    cluster.check_layout(config, cluster.current())
    model = _build_on_meta(config, len(corpus.vocab)).to_empty(device="cpu")
    plans = [_plan(config, name, corpus, model) for name, stage in config.stages.items() if stage.enabled]
    if config.init_from is not None:
        path, content = _load_named("init_from", config, corpus)
        _check_weights("init_from", path, content, model)
        plans[0] = replace(plans[0], init_checkpoint=path)
    if config.extend_from is not None:
        path, content = _load_named("extend_from", config, corpus)
        number = _stage_number("extend_from", path, content, plans)
        plans = plans[number:]  # the stages before it are part of the checkpoint
        _check_extension(config, path, content, plans[0])
        _check_weights("extend_from", path, content, model)
        plans[0] = replace(plans[0], extended_checkpoint=path)
    if config.resume not in ("auto", "never"):
        path, content = _load_named("resume", config, corpus)
        number = _stage_number("resume", path, content, plans)
        _check_same_configuration(config, path, content, plans[number])
        _check_weights("resume", path, content, model)
        _check_next_batch(path, content, plans[number], corpus)
        plans[number] = replace(plans[number], resume_checkpoint=path)
    return plans


def _build_on_meta(config: DictConfig, vocab_size: int) -> GPT:
    """The network without memory, if training it fits: weights, gradients and two moments."""
    with torch.device("meta"), errors_name("model"):  # a variant checks its own numbers
        model = build_model(config.model, vocab_size)
    needed, memory = 16 * model.num_parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"model: {model.num_parameters:,} parameters need {needed >> 30} GiB to train, and this machine"
            f" has {memory >> 30} GiB; take a smaller model.n_embd or model.n_layer"
        )
    return model


def _plan(config: DictConfig, name: str, corpus: Corpus, model: GPT) -> StagePlan:
    plain: Any = OmegaConf.to_container(config)
    stage = plain["stages"][name]
    shared = name != list(config.stages)[-1]  # later stages of several runs can start from it
    flags = _trainer_flags(plain["trainer"], stage)
    trainer = _probe(config, flags)
    plan = StagePlan(
        name=name,
        directory=pretraining_directory(config, name) if shared else run_directory(config) / name,
        shared=shared,
        data=plain["data"],
        data_sha256=corpus.sha256,
        model=plain["model"],
        dataset=stage["dataset"],
        optimizer=stage["optimizer"] or plain["optimizer"],
        schedule=stage["schedule"],
        callbacks=plain["callbacks"],
        logger=plain["logger"],
        trainer=flags,
        loading=LoaderConfig(
            stage["batch_size"],
            stage["num_workers"],
            config.seed,
            stage["shuffle"],
            stage["length_bucket"],
            same_epoch=bool(flags["overfit_batches"]),
        ),
        seed=config.seed,
        learning_rate=stage["learning_rate"],
        ema_decay=stage["ema_decay"],
        max_steps=config.trainer.max_steps,
        total_steps=0,
        processes=trainer.num_devices * trainer.num_nodes,
        float32_products=_library(config),
        stop_timeout_seconds=config.stop_timeout_seconds,
        max_nonfinite_steps=config.max_nonfinite_steps if config.on_nonfinite == "skip" else 0,
        save_every_n_steps=config.checkpoint.every_n_steps,
        keep_last=config.checkpoint.keep_last,
        config=to_saved(config),
        config_sha256=config_hash(hashed_config(config, name)),
        start_over=config.resume == "never",
    )
    _check_share(plan)
    data = build_datamodule(plan, corpus)
    flags = _resolve_limits(plan, data)
    clock = training_clock(plan, data.train_rows)
    total_steps = clock.steps_of(flags["max_epochs"], plan.max_steps)
    with errors_name(f"stages.{name}.schedule"):
        instantiate(plan.schedule)(total_positions=clock.positions_seen(total_steps))
    key = f"stages.{name}.optimizer" if stage["optimizer"] else "optimizer"
    with errors_name(key):  # torch checks its own numbers
        optimizer = instantiate(plan.optimizer)(model=model, lr=plan.learning_rate)
    checked_kind(optimizer, Optimizer, key)
    configured_callbacks(plan)
    check_installed(plan.logger)
    return replace(plan, trainer=flags, total_steps=total_steps)


def _library(config: DictConfig) -> str:
    """What multiplies float32 matrices: measured where it matters."""
    if config.float32_products != "auto":
        return str(config.float32_products)
    matters = config.trainer.precision == "32-true" and not torch.cuda.is_available()
    return faster_library(config.model.n_embd) if matters else MKL


def _check_share(plan: StagePlan) -> None:
    """Check that every process has a row of each batch."""
    rows = plan.loading.batch_size
    if rows < plan.processes:
        raise InputError(
            f"stages.{plan.name}.batch_size={rows}: the {plan.processes} processes share the rows of a batch;"
            f" give {plan.processes} or more, or at most {rows} processes (trainer.devices)"
        )


def _trainer_flags(flags: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of Lightning's Trainer for a stage: the trainer's value, otherwise the stage's."""
    own = {key: flags[key] if flags[key] is not None else stage[key] for key in TRAINER_OVERRIDES}
    if isinstance(flags["val_check_interval"], int):
        own["check_val_every_n_epoch"] = None  # every so many batches, across epochs
    else:  # the largest divisor, so that the last epoch ends with a validation
        every = min(own["check_val_every_n_epoch"], own["max_epochs"])
        own["check_val_every_n_epoch"] = next(n for n in range(every, 0, -1) if own["max_epochs"] % n == 0)
    placement = cluster.current()
    own["num_nodes"] = 1 if placement is None else placement.hosts
    return {**flags, **own, "max_steps": -1}  # StepLimit counts the steps


def _resolve_limits(plan: StagePlan, data: BatchDataModule) -> dict[str, Any]:
    """The trainer's flags with numbers of batches in place of fractions of an epoch."""
    train_batches = -(-data.train_rows // plan.loading.batch_size)
    val_batches = min(len(loader) for loader in data.val_dataloader())
    flags = dict(plan.trainer)
    for key, count in (
        ("limit_train_batches", train_batches),
        ("overfit_batches", train_batches),
        ("limit_val_batches", val_batches),
    ):
        limit = flags[key]
        if isinstance(limit, float) and 0 < limit < 1:
            if int(limit * count) == 0:
                raise InputError(
                    f"trainer.{key}={limit}: less than one of the {count} batches of {plan.name}; give a"
                    f" larger fraction, at most 1.0, or a number of batches"
                )
            if key != "limit_val_batches":  # two loaders, each with its own length
                flags[key] = int(limit * count)
    if flags["overfit_batches"]:
        flags["limit_train_batches"] = flags["limit_val_batches"] = flags["overfit_batches"]
    if flags["limit_train_batches"] == 0:
        raise InputError("trainer.limit_train_batches=0: nothing to train on; give 1 or more, or null")
    return flags


def _probe(config: DictConfig, flags: Mapping[str, Any]) -> L.Trainer:
    try:
        trainer = probe_trainer(flags)
    except InstantiationException as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        settings = ", ".join(
            f"{key}={config.trainer[key]}" for key in ("accelerator", "devices", "precision", "strategy")
        )
        raise InputError(f"trainer: {reason} ({settings})") from error
    if flags["precision"].startswith("16") and trainer.strategy.root_device.type == "cpu":
        raise InputError(
            f"trainer.precision={flags['precision']}: needs a GPU, and this is a CPU; take bf16-mixed"
        )
    return trainer


def _load_named(key: str, config: DictConfig, corpus: Corpus) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that the configuration names, if its stage and its vocabulary fit."""
    path = named_checkpoint(key, config[key])
    if path.name == checkpoint.best_path(path.parent).name and key != "init_from":
        raise CheckpointError(
            f"{key}={path}: the best validation, of which training cannot continue exactly; give a"
            " step-NUMBER.ckpt, or init_from for its weights"
        )
    try:
        content = checkpoint.load(path)
        metadata = content["birthplace_lm"]
        if metadata["stage"] not in config.stages:
            raise CheckpointError(f"{path}: of the stage {metadata['stage']}, which does not exist")
        there, here = metadata["vocab"], list(corpus.vocab.symbols)
        if there != here:
            more, fewer = "".join(sorted({*there} - {*here})), "".join(sorted({*here} - {*there}))
            raise CheckpointError(
                f"{path}: its vocabulary of {len(there)} is not the {len(here)} symbols of the corpus (only"
                f" there: {more[:20]!r}, only here: {fewer[:20]!r}); give the data.* it was trained on"
            )
    except CheckpointError as error:
        raise CheckpointError(f"{key}={error}") from error
    return path, content


def _check_weights(key: str, path: Path, content: Mapping[str, Any], model: GPT) -> None:
    try:
        check_state_dict(model, model_state_dict(content), path)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={error}") from error


def _stage_number(key: str, path: Path, content: Mapping[str, Any], plans: list[StagePlan]) -> int:
    stage = content["birthplace_lm"]["stage"]
    names = [plan.name for plan in plans]
    if stage not in names:
        raise CheckpointError(f"{key}={path}: of the stage {stage}, which this run does not have")
    return names.index(stage)


def _saved_settings(
    key: str, path: Path, content: Mapping[str, Any], stage: str, plugins: Collection[str]
) -> dict[str, Any]:
    """What the weights of a checkpoint depend on, from the configuration inside it."""
    try:
        return hashed_config(parse_saved(content["birthplace_lm"]["config"], path, plugins), stage)
    except BirthplaceError as error:
        raise CheckpointError(f"{key}={error}") from error


def _check_same_configuration(
    config: DictConfig, path: Path, content: Mapping[str, Any], plan: StagePlan
) -> None:
    ours = hashed_config(config, plan.name)
    theirs = _saved_settings("resume", path, content, plan.name, config.plugins)
    if theirs != ours:
        raise InputError(
            f"resume={path}: belongs to a run with another {first_difference(theirs, ours)}; repeat its"
            " configuration, or train a finished run longer with extend_from=RUN"
        )


def _check_extension(config: DictConfig, path: Path, content: Mapping[str, Any], plan: StagePlan) -> None:
    ours = hashed_config(config, plan.name)
    theirs = _saved_settings("extend_from", path, content, plan.name, config.plugins)
    for settings in (theirs, ours):
        settings.pop("extend_from")
        for key in EXTENDABLE_STAGE:
            settings["stages"][plan.name].pop(key, None)
        for key in EXTENDABLE_TRAINER:
            settings["trainer"].pop(key)
        for part in (settings, settings["stages"][plan.name]):
            if "optimizer" in part:
                part["optimizer"] = {k: v for k, v in part["optimizer"].items() if not _is_number(v)}
    if theirs != ours:
        raise InputError(
            f"extend_from={path}: belongs to a run with another {first_difference(theirs, ours)}; an"
            " extension may change the epochs, rate, schedule and optimizer numbers of its stage alone"
        )
    if content["global_step"] >= plan.total_steps:
        raise InputError(
            f"extend_from={path}: has {content['global_step']} steps already, and {plan.name} would end after"
            f" {plan.total_steps}; give more stages.{plan.name}.max_epochs"
        )


def _is_number(value: Any) -> bool:
    """Whether this is a number or a list of numbers; a flag may decide what a parameter group holds."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_next_batch(path: Path, content: Mapping[str, Any], plan: StagePlan, corpus: Corpus) -> None:
    """Check that the checkpoint's next batch is the one that this code would make."""
    data = build_datamodule(plan, corpus)
    try:
        data.load_state_dict(content[type(data).__qualname__])
        data.train_dataloader()
    except KeyError as error:
        raise CheckpointError(f"resume={path}: does not say where in the data it was saved") from error
