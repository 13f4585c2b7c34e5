"""The checkpoints that a configuration names (init_from, extend_from, resume=PATH): check that they fit."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from birthplace_lm.config.compose import parse_saved
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import check_state_dict
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.identity import first_difference, hashed_config, named_checkpoint
from birthplace_lm.training.components import build_datamodule
from birthplace_lm.training.plan import StagePlan

# What may change when a finished stage is extended; the stages after it may change altogether.
EXTENDABLE_STAGE = ("max_epochs", "learning_rate", "schedule", "check_val_every_n_epoch")
EXTENDABLE_TRAINER = ("max_steps", "max_time", "limit_val_batches", "val_check_interval")


def with_named_checkpoints(
    plans: Sequence[StagePlan], config: DictConfig, corpus: Corpus, model: GPT
) -> list[StagePlan]:
    """The plans with the checkpoints they start from, each read and checked against its plan.

    With `extend_from` the stages before that of the checkpoint are dropped: they are part of it.

    Raises:
        InputError, CheckpointError: a checkpoint cannot be read or does not fit; with its key and path.
    """
    plans = list(plans)
    if config.init_from is not None:
        path, content = _load_named("init_from", config, corpus)
        _check_weights("init_from", path, content, model, config)
        plans[0] = replace(plans[0], init_checkpoint=path)
    if config.extend_from is not None:
        path, content = _load_named("extend_from", config, corpus)
        number = _stage_number("extend_from", path, content, plans)
        plans = plans[number:]  # the stages before it are part of the checkpoint
        _check_extension(config, path, content, plans[0])
        _check_weights("extend_from", path, content, model, config)
        plans[0] = replace(plans[0], extended_checkpoint=path)
    if config.resume not in ("auto", "never"):
        path, content = _load_named("resume", config, corpus)
        number = _stage_number("resume", path, content, plans)
        _check_name(path, content, plans[number])
        _check_same_configuration(config, path, content, plans[number])
        _check_weights("resume", path, content, model, config)
        _check_next_batch(path, content, plans[number], corpus)
        plans[number] = replace(plans[number], resume_checkpoint=path)
    return plans


def _load_named(key: str, config: DictConfig, corpus: Corpus) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that the configuration names, if its stage and its vocabulary fit."""
    path = named_checkpoint(key, config[key])
    if path.name == checkpoint.best_path(path.parent).name and key != "init_from":
        raise CheckpointError(
            f"{key}={path}: the best validation, from which training cannot resume exactly; give a"
            " step-NUMBER.ckpt, or start from its weights with init_from"
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


def _check_weights(key: str, path: Path, content: Mapping[str, Any], model: GPT, config: DictConfig) -> None:
    hint = "; give its attention= and model.*"
    try:
        check_state_dict(model, model_state_dict(content), path, hint)
    except CheckpointError as error:
        reason, ours = str(error), hashed_config(config)["model"]
        with suppress(CheckpointError):  # its configuration cannot be read
            stage = content["birthplace_lm"]["stage"]
            theirs = _saved_settings(key, path, content, stage, config.plugins)["model"]
            if theirs != ours:
                difference = first_difference(theirs, ours, "model")
                reason = f"{path}: belongs to another model: {difference}{hint}"
        raise CheckpointError(f"{key}={reason}") from error


def _stage_number(key: str, path: Path, content: Mapping[str, Any], plans: Sequence[StagePlan]) -> int:
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


def _check_name(path: Path, content: Mapping[str, Any], plan: StagePlan) -> None:
    """Check that a checkpoint in the folder of its stage has its name, by which later ones are removed.

    Raises:
        InputError: it has another.
    """
    file = path.resolve()
    own = checkpoint.checkpoint_path(plan.directory.resolve(), content["global_step"])
    if file.parent == own.parent and file != own:
        raise InputError(
            f"resume={path}: holds step {content['global_step']}, so its name here must be {own.name}; rename"
            " it and its .sha256, or copy both to another folder"
        )


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
