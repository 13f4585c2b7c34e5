"""Preflight: take every decision of every stage, and check it, before the first stage starts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from birthplace_lm.config.compose import to_saved
from birthplace_lm.data.batch_datamodule import QUESTIONS_PER_BATCH, BatchDataModule, LoaderConfig
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.workers import check_shared_memory
from birthplace_lm.errors import InputError
from birthplace_lm.models.attention_check import check_attention
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import MKL
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs.auto_precision import device_kind, faster_library
from birthplace_lm.runs.identity import (
    TRAINER_OVERRIDES,
    config_hash,
    hashed_config,
    pretraining_directory,
    run_directory,
)
from birthplace_lm.training.callbacks.monitoring import MetricMonitor
from birthplace_lm.training.components import (
    build_datamodule,
    build_schedule,
    checked_kind,
    configured_callbacks,
    errors_prefixed_with,
    own_targets,
    probe_trainer,
    training_clock,
)
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.loggers import check_installed
from birthplace_lm.training.named_checkpoints import with_named_checkpoints
from birthplace_lm.training.plan import StagePlan


def preflight(config: DictConfig, corpus: Corpus) -> list[StagePlan]:
    """Plan the stages of a run; nothing is written.

    Raises:
        InputError, CheckpointError: what is wrong, and with which key.
    """
    cluster.check_layout(config, cluster.current())
    model = _build_on_meta(config, len(corpus.vocab)).to_empty(device="cpu")
    if own_targets(config.model):
        with errors_prefixed_with("model", config.model):
            check_attention(config.model)
    plans = [_plan(config, name, corpus, model) for name, stage in config.stages.items() if stage.enabled]
    return with_named_checkpoints(plans, config, corpus, model)


def _build_on_meta(config: DictConfig, vocab_size: int) -> GPT:
    """The network without memory, if training it fits: weights, gradients and two moments."""
    with errors_prefixed_with("model", config.model), torch.device("meta"):
        model = build_model(config.model, vocab_size)  # a variant checks its own numbers
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
        plugins=[*config.plugins],
    )
    data = build_datamodule(plan, corpus)
    with errors_prefixed_with(f"stages.{name}.dataset", plan.dataset):
        data.check_first_batch()
    _check_shares(plan, data)
    share = -(-plan.loading.batch_size // plan.processes)
    batch_bytes = 2 * 8 * share * config.model.block_size  # inputs and targets, int64
    key = f"stages.{name}.num_workers"
    check_shared_memory(key, plan.loading.num_workers, trainer.num_devices, batch_bytes)
    plan = replace(plan, trainer=_resolve_limits(plan, data), warnings=[*data.warnings])
    clock = training_clock(plan, data.train_rows)
    total_steps = clock.steps_of(plan.trainer["max_epochs"], plan.max_steps)
    plan = _validate_at_the_end(plan, -(-total_steps // clock.steps_per_epoch))
    build_schedule(plan, clock, total_steps)
    _check_optimizer(plan, model, f"stages.{name}.optimizer" if stage["optimizer"] else "optimizer")
    plan = _warn_without_validation(replace(plan, total_steps=total_steps), configured_callbacks(plan))
    check_installed(plan.logger)
    return plan


def _check_optimizer(plan: StagePlan, model: GPT, key: str) -> None:
    """Make the optimizer of a stage once, for a model whose weights do not matter.

    Args:
        key: of its configuration.

    Raises:
        InputError: it refuses its arguments, or lacks weights of the model.
    """
    with errors_prefixed_with(key, plan.optimizer):  # torch checks its own numbers
        made = instantiate(plan.optimizer)(model=model, lr=plan.learning_rate)
        optimizer = checked_kind(made, Optimizer, key)
        has = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        lacks = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in has]
        if lacks:
            raise ValueError(
                f"lacks {len(lacks)} of the model's weights, first {lacks[0]}; to freeze weights, set their"
                " requires_grad to False in the method setup of a callback"
            )


def _library(config: DictConfig) -> str:
    """What multiplies float32 matrices on a CPU: measured where it matters."""
    if device_kind(config.trainer.accelerator) != "cpu":
        return MKL  # on a GPU, Lightning asks torch for its precision of products, an error with oneDNN
    if config.float32_products != "auto":
        return str(config.float32_products)
    return faster_library(config.model.n_embd) if config.trainer.precision == "32-true" else MKL


def _check_shares(plan: StagePlan, data: BatchDataModule) -> None:
    """Check that every process has a row of each batch, and a question to ask."""
    rows, questions = plan.loading.batch_size, len(data.questions)
    if questions < plan.processes:
        key = f"data.holdout_size={questions}" if data.corpus.holdout else f"data.dev={data.corpus.dev.path}"
        raise InputError(
            f"{key}: the {plan.processes} processes share the questions of a validation, so it needs"
            f" {plan.processes} or more; or give fewer processes (trainer.devices)"
        )
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
    if flags["strategy"] == "fsdp2":  # weights that are gathered in inference mode cannot be trained
        own["inference_mode"] = False
    placement = cluster.current()
    own["num_nodes"] = 1 if placement is None else placement.hosts
    return {**flags, **own, "max_steps": -1}  # StepLimit counts the steps


def _validate_at_the_end(plan: StagePlan, epochs: int) -> StagePlan:
    """Validate at an interval that divides the epochs, so that the last one ends with a validation.

    An interval of less than half of what the configuration wants is worth a warning.
    """
    wanted = plan.trainer["check_val_every_n_epoch"]
    if wanted is None:
        return plan
    wanted = min(wanted, epochs)
    every = next(n for n in range(wanted, 0, -1) if epochs % n == 0)
    warnings = [*plan.warnings]
    if 2 * every < wanted:
        warnings.append(
            f"validates after every {every} epochs, not {wanted}, which does not divide its {epochs} epochs"
        )
    return replace(plan, trainer={**plan.trainer, "check_val_every_n_epoch": every}, warnings=warnings)


def _warn_without_validation(plan: StagePlan, callbacks: Sequence[L.Callback]) -> StagePlan:
    """Warn of callbacks that watch validations in a stage that has none.

    Args:
        callbacks: those of the configuration, in its order.
    """
    flags, most_batches = plan.trainer, plan.total_steps * plan.trainer["accumulate_grad_batches"]
    rare = flags["check_val_every_n_epoch"] is None and flags["val_check_interval"] > most_batches
    if flags["limit_val_batches"] != 0 and not rare:
        return plan
    key = "val_check_interval" if rare else "limit_val_batches"
    warnings = [
        f"callbacks.{name} has no effect: no validation, because of trainer.{key}={flags[key]}"
        for name, callback in zip(plan.callbacks, callbacks, strict=True)
        if isinstance(callback, MetricMonitor)
    ]
    return replace(plan, warnings=[*plan.warnings, *warnings])


def _resolve_limits(plan: StagePlan, data: BatchDataModule) -> dict[str, Any]:
    """The trainer's flags with numbers of batches in place of fractions of an epoch."""
    train_batches = -(-data.train_rows // plan.loading.batch_size)
    smallest_share = len(data.questions) // plan.processes
    val_batches = min(-(-smallest_share // QUESTIONS_PER_BATCH), *map(len, data.val_dataloader()))
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
