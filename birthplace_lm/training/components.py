"""The objects of a stage: data module, LightningModule, callbacks and trainer, each made from the plan."""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.data.batch_datamodule import BatchDataModule
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import InputError
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.identity import hashed_config
from birthplace_lm.training.callbacks.checkpointing import CheckpointCallback, VerifiedCheckpointIO
from birthplace_lm.training.callbacks.ema import EMA
from birthplace_lm.training.callbacks.knowledge import KnowledgeBits
from birthplace_lm.training.callbacks.nonfinite import NonFiniteGuard
from birthplace_lm.training.callbacks.optimizer_settings import ConfiguredOptimizerSettings
from birthplace_lm.training.callbacks.progress import progress
from birthplace_lm.training.callbacks.samples import AttentionMaps, CurveNotes, SampleAnswers
from birthplace_lm.training.callbacks.seeding import SeedEveryBatch
from birthplace_lm.training.callbacks.step_limit import StepLimit
from birthplace_lm.training.callbacks.time_limit import TimeLimit
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.distributed.fsdp import UnshardForValidation, resolve_strategy
from birthplace_lm.training.distributed.group import OwnProcesses, environment
from birthplace_lm.training.lightning_module import LanguageModelModule
from birthplace_lm.training.lr_schedules import TrainingClock, factor_by_step
from birthplace_lm.training.plan import StagePlan


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's INFO lines out of the log, which they would fill."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def own_targets(node: Any) -> list[str]:
    """The classes and functions in a part of the configuration that are not of this package."""
    if not isinstance(node, Mapping):
        return []
    target = node.get("_target_")
    own = [target] if target is not None and not target.startswith("birthplace_lm.") else []
    return own + [inner for value in node.values() for inner in own_targets(value)]


@contextmanager
def errors_prefixed_with(key: str, part: Any) -> Iterator[None]:
    """Put the configuration key in front of what a part of the configuration says about its arguments.

    Args:
        key: of the part.
        part: its settings. If a user's class or function is among them, it is named, and errors of any kind
            are those of the user.

    Raises:
        InputError: instead of any error of a user's part, otherwise of a ValueError.
    """
    own = ", ".join(own_targets(part))
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refuses = isinstance(error, ValueError)
        if not (own or refuses):
            raise
        reason, *_ = str(error).strip().splitlines() or ["no message"]
        if refuses and re.match(r"[\w.]+=", reason):  # of an argument
            raise InputError(f"{key}.{reason}") from error
        kind = "" if refuses else type(error).__name__
        on_meta = key == "model" and "meta" in reason
        hint = "; a model is first built without memory, on torch's meta device" if on_meta else ""
        raise InputError(": ".join(filter(None, (key, own, kind, reason))) + hint) from error


T = TypeVar("T")


def checked_kind(made: Any, kind: type[T], key: str) -> T:
    """What a factory of the configuration has made, if it is an object of this kind.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(made, kind):
        raise InputError(f"{key}._target_: makes a {type(made).__name__}; must make a {kind.__name__}")
    return made


def build_datamodule(plan: StagePlan, corpus: Corpus) -> BatchDataModule:
    """The data of a stage.

    Raises:
        InputError: an argument of the dataset is out of range.
    """
    key = f"stages.{plan.name}.dataset"
    with errors_prefixed_with(key, plan.dataset):
        data = instantiate(plan.dataset)(
            corpus=corpus, loading=plan.loading, block_size=plan.model["block_size"]
        )
    return checked_kind(data, BatchDataModule, key)


def training_clock(plan: StagePlan, train_rows: int) -> TrainingClock:
    """The clock of a stage, by which its learning rate goes; an epoch is as long as the trainer makes it."""
    limit = plan.trainer["limit_train_batches"]
    if isinstance(limit, int):
        train_rows = min(train_rows, limit * plan.loading.batch_size)
    rows_per_step = plan.loading.batch_size * plan.trainer["accumulate_grad_batches"]
    return TrainingClock(train_rows, rows_per_step, plan.model["block_size"] - 1)


def build_schedule(plan: StagePlan, clock: TrainingClock, total_steps: int) -> Callable[[int], float]:
    """The factor of the learning rate by the optimizer steps taken before.

    Raises:
        InputError: the schedule refuses its arguments, or its factor is not a number of 0 or more.
    """
    key = f"stages.{plan.name}.schedule"
    with errors_prefixed_with(key, plan.schedule):
        schedule = instantiate(plan.schedule)(total_positions=clock.positions_seen(total_steps))
        if not callable(schedule):
            raise TypeError(f"makes a {type(schedule).__name__}; must make a function of the positions read")
        factor = factor_by_step(schedule, clock)
        for step in sorted({total_steps * tenth // 10 for tenth in range(10)} | {max(0, total_steps - 1)}):
            value = factor(step)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"its factor before step {step + 1} is {value}; must be a number, 0 or more")
    return factor


def build_module(plan: StagePlan, model: GPT, corpus: Corpus, train_rows: int) -> LanguageModelModule:
    """The LightningModule of a stage."""
    clock = training_clock(plan, train_rows)
    return LanguageModelModule(
        stage=plan.name,
        model=model,
        vocab=corpus.vocab,
        optimizer=partial(instantiate(plan.optimizer), lr=plan.learning_rate),
        lr_factor=build_schedule(plan, clock, plan.total_steps),
        total_steps=plan.total_steps,
    )


def checkpoint_metadata(plan: StagePlan, corpus: Corpus) -> dict[str, Any]:
    """What every checkpoint of a stage says about where it comes from."""
    return {
        "format": checkpoint.FORMAT,
        "stage": plan.name,
        "config": plan.config,
        "config_sha256": plan.config_sha256,
        "vocab": list(corpus.vocab.symbols),
        "data": corpus.sha256,
    }


def configured_callbacks(plan: StagePlan) -> list[L.Callback]:
    """The callbacks that the configuration adds: those of `callbacks.NAME`.

    Raises:
        InputError: one cannot be made, saves checkpoints of Lightning, or shares the key of its state.
    """
    callbacks: list[L.Callback] = []
    state_keys: set[str] = set()
    for name, factory in plan.callbacks.items():
        key = f"callbacks.{name}"
        with errors_prefixed_with(key, factory):
            callback = checked_kind(instantiate(factory)(), L.Callback, key)
        if isinstance(callback, Checkpoint):
            raise InputError(f"{key}: this program saves the checkpoints; take callbacks=best_checkpoint")
        if callback.state_dict():
            if callback.state_key in state_keys:
                raise InputError(
                    f"{key}: its state_key {callback.state_key} is that of another callback; give it its own"
                )
            state_keys.add(callback.state_key)
        callbacks.append(callback)
    return callbacks


def build_callbacks(plan: StagePlan, corpus: Corpus, resume: Path | None) -> list[L.Callback]:
    """The callbacks of a stage but for cost and curves; the order matters: checkpoints come last.

    Args:
        resume: the checkpoint that the stage continues from.
    """
    return [
        ConfiguredOptimizerSettings(plan.optimizer),
        SeedEveryBatch(plan.seed, plan.name),
        SampleAnswers(plan.name),
        AttentionMaps(plan.name),
        KnowledgeBits(plan.name),
        CurveNotes(plan.name),
        *progress(plan.name, plan.trainer["enable_progress_bar"]),
        NonFiniteGuard(plan.max_nonfinite_steps, plan.directory),
        StepLimit(plan.max_steps),
        *([TimeLimit(plan.trainer["max_time"])] if plan.trainer["max_time"] else []),
        *configured_callbacks(plan),  # before EMA: at the end of a validation they see the validated weights
        *([EMA(plan.ema_decay)] if plan.ema_decay else []),
        UnshardForValidation(),
        CheckpointCallback(
            plan.directory,
            plan.save_every_n_steps,
            plan.keep_last,
            checkpoint_metadata(plan, corpus),
            resume,
        ),
    ]


def probe_trainer(flags: Mapping[str, Any]) -> L.Trainer:
    """A trainer that shows which devices there are, and trains nothing."""
    with quiet_lightning():
        trainer: L.Trainer = instantiate(
            flags,
            strategy=resolve_strategy(flags["strategy"]),
            logger=False,
            enable_checkpointing=False,
            plugins=[environment()],  # otherwise Lightning counts the tasks of Slurm
        )
    return trainer


def build_loggers(plan: StagePlan, resume: Path | None) -> list[Logger]:
    """The loggers that the configuration names, in the first process; none in the others.

    Raises:
        InputError: one is no logger.
    """
    placement = cluster.current()
    if OwnProcesses().local_rank() if placement is None else placement.rank:
        return []
    run = (plan.directory if plan.shared else plan.directory.parent).resolve().name
    first_step = 0 if resume is None else checkpoint.parse_step(resume)
    config = DictConfig(OmegaConf.create(plan.config))
    settings = hashed_config(config, plan.name)  # those that a resumed run has too
    loggers = []
    for key, factory in plan.logger.items():
        with errors_prefixed_with(f"logger.{key}", factory):
            made = instantiate(factory)(
                folder=plan.directory, name=f"{run}/{plan.name}", first_step=first_step
            )
        logger = checked_kind(made, Logger, f"logger.{key}")  # type: ignore[type-abstract]
        if not isinstance(logger, TensorBoardLogger):  # see `training.tensorboard`
            logger.log_hyperparams(settings)
        loggers.append(logger)
    return loggers


def build_trainer(plan: StagePlan, callbacks: list[L.Callback], resume: Path | None) -> L.Trainer:
    """The trainer of a stage."""
    _await_new_second(plan.directory)
    trainer: L.Trainer = instantiate(
        plan.trainer,
        max_time=None,  # Lightning would put its timer after our callbacks, which save the checkpoint
        overfit_batches=0,  # Lightning would replace our sampler, which resumes where the epoch was left
        strategy=resolve_strategy(plan.trainer["strategy"], plan.processes),
        enable_progress_bar=False,  # Lightning's; ours is among the callbacks
        default_root_dir=str(plan.directory),
        logger=build_loggers(plan, resume),
        callbacks=callbacks,
        plugins=[VerifiedCheckpointIO(), environment()],
        enable_checkpointing=False,
        profiler=_profiler(plan.trainer["profiler"], plan.directory),
        use_distributed_sampler=False,
    )
    # Lightning's handlers would end a run with code 0 within a window of accumulated batches; see `signals`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _profiler(name: str | None, folder: Path) -> Any:
    """A profiler that writes into the folder of the stage."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if name is None else kinds[name](dirpath=folder, filename="profile")


def _await_new_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which hold the time in whole seconds."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
