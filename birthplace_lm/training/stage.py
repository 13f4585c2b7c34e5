"""One stage: from its newest checkpoint, or its beginning, to its end."""

import logging
import shutil
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
from hydra.utils import get_class

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import CheckpointError, InternalError
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import build_model, load_state_dict_checked
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.metrics import STAGE_RESULT, StageResult
from birthplace_lm.training.allocator import disable_malloc_trim
from birthplace_lm.training.callbacks.cost import CostCounter
from birthplace_lm.training.callbacks.curves import EVENT_FILES, TrainingCurves
from birthplace_lm.training.callbacks.monitoring import BestCheckpoint, EarlyStopping
from birthplace_lm.training.callbacks.time_limit import TimeLimit
from birthplace_lm.training.components import (
    build_callbacks,
    build_datamodule,
    build_module,
    build_trainer,
    checkpoint_metadata,
    quiet_lightning,
)
from birthplace_lm.training.distributed import cluster, group
from birthplace_lm.training.distributed.launcher import fit_in_processes
from birthplace_lm.training.loggers import CURVES_CSV
from birthplace_lm.training.plan import StagePlan

log = logging.getLogger(__name__)

EARLY_STOP_FLAGS = ("max_time", "fast_dev_run")


def fit_stage(
    plan: StagePlan, corpus: Corpus, init: LoadedCheckpoint | None = None
) -> tuple[StageResult, LoadedCheckpoint]:
    """Train one stage to its end, and return its last checkpoint.

    It continues from its newest checkpoint; without one it starts from `plan.init_checkpoint`. With several
    devices the training happens in as many processes of this program.

    Args:
        plan: of the stage.
        corpus: its data.
        init: the content of `plan.init_checkpoint`, if it has been read.

    Raises:
        CheckpointError: a checkpoint cannot be written, or all that the stage has are damaged.
        NonFiniteError: a loss or gradient is not finite, and the configuration does not skip it.
        Interrupted: a signal arrived; the last step is saved.
        InternalError: the stage ended early without a reason.
    """
    folder = plan.directory
    result = folder / STAGE_RESULT
    if (finished := _finished(plan)) is not None:
        if (path := plan.resume_checkpoint) is not None:
            log.warning("%s is finished, resume=%s has no effect: remove %s", plan.name, path, result)
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    resume = _resume_checkpoint(plan)
    if resume is None and result.is_file() and not plan.start_over:
        raise CheckpointError(f"{folder}: finished, but its checkpoint is gone; remove {STAGE_RESULT} there")
    if resume is not None:
        if resume.resolve().parent == folder.resolve():
            resume = folder / resume.resolve().name  # as `list_checkpoints` spells it
        else:  # copy it: if it is of the stage's last step, training saves no other
            resume = _copy_into(resume, plan, corpus)
    for damaged in checkpoint.quarantine_and_prune(folder, resume):
        log.warning("moved a damaged checkpoint to %s", damaged)
    if resume is not None:
        log.info("%s: resuming after step %d, from %s", plan.name, checkpoint.parse_step(resume), resume)
    if plan.processes == 1:
        train_stage(plan, corpus, resume, init)
    elif cluster.current() is None:
        fit_in_processes(plan, resume)
    else:
        group.train_as_rank_zero(plan, resume, partial(train_stage, plan, corpus, resume, init))
    trained = StageResult.read(result)
    return trained, LoadedCheckpoint.read(checkpoint.checkpoint_path(folder, trained.steps))


def steps_done(plan: StagePlan, overwrite: bool) -> int:
    """The optimizer steps of a stage that its run will not take again.

    Args:
        overwrite: of the run, which removes all stages that are not shared.
    """
    if overwrite and not plan.shared:
        return 0
    if (finished := _finished(plan)) is not None:
        return finished[0].steps
    newest = _resume_checkpoint(plan)
    return 0 if newest is None else LoadedCheckpoint.read(newest).step


def _finished(plan: StagePlan) -> tuple[StageResult, LoadedCheckpoint] | None:
    """The result and the last checkpoint of a finished stage; None if one of them is missing or another's."""
    if (plan.directory / STAGE_RESULT).is_file():
        result = StageResult.read(plan.directory / STAGE_RESULT)
        with suppress(CheckpointError):
            last = LoadedCheckpoint.read(checkpoint.checkpoint_path(plan.directory, result.steps))
            if last.metadata.get("config_sha256") == plan.config_sha256:
                return result, last
    return None


def _resume_checkpoint(plan: StagePlan) -> Path | None:
    """The checkpoint to continue from; None to start over."""
    if plan.resume_checkpoint is not None:
        return plan.resume_checkpoint
    newest = None if plan.start_over else checkpoint.latest_intact(plan.directory)
    return newest or plan.extended_checkpoint


def _copy_into(path: Path, plan: StagePlan, corpus: Corpus) -> Path:
    """Copy a checkpoint of another folder into the stage's own, as one of this run, with curves and best."""
    loaded = LoadedCheckpoint.read(path)
    for curves in (*path.parent.glob(EVENT_FILES), *path.parent.glob(CURVES_CSV)):
        shutil.copy(curves, plan.directory)
    metadata = checkpoint_metadata(plan, corpus)
    loaded.metadata.update(metadata)
    states = loaded.content["callbacks"]
    if path == plan.extended_checkpoint:
        _reopen_epoch(loaded)
        # Otherwise the extension would stop at once.
        states.pop(TimeLimit.state_key, None)
        if EarlyStopping.state_key in states:
            states[EarlyStopping.state_key]["waited"] = 0
    if (state := states.get(BestCheckpoint.state_key)) is not None:
        best = None
        with suppress(CheckpointError):
            best = LoadedCheckpoint.read(checkpoint.best_path(path.parent))
        if best is not None and best.step == state["best_step"]:
            best.metadata.update(metadata)
            checkpoint.save(best.content, checkpoint.best_path(plan.directory))
        else:  # it is missing, or of a later step: the next validation is the best
            state["best"] = None
    return checkpoint.copy_into(loaded, plan.directory)


def _reopen_epoch(loaded: LoadedCheckpoint) -> None:
    """Let an extension go on within the epoch in which its stage ended: Lightning has counted it as done.

    Raises:
        CheckpointError: the checkpoint does not say where that was.
    """
    content = loaded.content
    try:  # the key of a data module is the name of its class, which may be a user's
        cursors = [state for state in content.values() if isinstance(state, dict) and "next_batch" in state]
        if cursors[0]["index"]:
            content["epoch"] -= 1
            for counts in content["loops"]["fit_loop"]["epoch_progress"].values():
                counts["processed"] -= 1
                counts["completed"] -= 1
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{loaded.path}: does not say where in its epoch the stage ended") from error


def train_stage(
    plan: StagePlan, corpus: Corpus, resume: Path | None = None, init: LoadedCheckpoint | None = None
) -> None:
    """Train in this process, which may be one of several; leaves the last checkpoint and the result.

    Args:
        plan: of the stage.
        corpus: its data.
        resume: a checkpoint to continue from; without one training starts from `plan.init_checkpoint`.
        init: the content of that, if it has been read.

    Errors are those of `fit_stage`.
    """
    with float32_products(plan.float32_products), quiet_lightning():
        _train(plan, corpus, resume, init)


def _cost_until(loaded: LoadedCheckpoint) -> dict[str, float]:
    """The characters and seconds of all stages up to a checkpoint."""
    states = loaded.content.get("callbacks", {})
    costs = states.get(CostCounter.state_key), states.get(TrainingCurves.state_key, {}).get("previous_cost")
    return {key: sum(cost[key] for cost in costs if cost) for key in ("characters", "seconds")}


def _train(plan: StagePlan, corpus: Corpus, resume: Path | None, init: LoadedCheckpoint | None) -> None:
    L.seed_everything(plan.seed, verbose=False)
    disable_malloc_trim()
    model = build_model(plan.model, len(corpus.vocab))
    if init is None and plan.init_checkpoint is not None:
        init = LoadedCheckpoint.read(plan.init_checkpoint)
    if resume is None and init is not None:
        load_state_dict_checked(model, model_state_dict(init.content), init.path)
    data = build_datamodule(plan, corpus)
    module = build_module(plan, model, corpus, data.train_rows)
    cost = CostCounter()
    curves = TrainingCurves(plan.name, plan.directory, cost, None if init is None else _cost_until(init))
    trainer = build_trainer(plan, [cost, curves, *build_callbacks(plan, corpus, resume)], resume)
    log.info(
        "%s: %d parameters, %d rows an epoch, %s",
        plan.name,
        model.num_parameters,
        data.train_rows,
        plan.describe_step(),
    )
    if not any(map(module.lr_factor, range(plan.total_steps))):
        log.warning(
            "%s: its schedule has a learning rate of 0 at every step, so it learns nothing", plan.name
        )
    for warning in plan.warnings:
        log.warning("%s: %s", plan.name, warning)
    with warnings.catch_warnings():
        # Lightning looks for a state in the loader; ours is in the data module.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # short epochs are meant
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning and torch
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.global_step < plan.total_steps:
        ending = f"{plan.name} ended after step {trainer.global_step} of {plan.total_steps}"
        flags = [key for key in EARLY_STOP_FLAGS if plan.trainer[key]]
        callbacks = [
            key for key, made in plan.callbacks.items() if get_class(made["_target_"]) is not BestCheckpoint
        ]
        reasons = [*(f"trainer.{key}" for key in flags), *(f"callbacks.{key}" for key in callbacks)]
        if not reasons:
            raise InternalError(ending)
        log.info("%s, by %s", ending, " or ".join(reasons))
    if trainer.is_global_zero:
        result = StageResult(
            trainer.global_step, trainer.current_epoch, cost.characters, cost.seconds, curves.loss
        )
        result.write(plan.directory / STAGE_RESULT)
