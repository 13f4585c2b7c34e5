"""One stage: from its newest checkpoint, or its beginning, to its end."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.errors import CheckpointError, InternalError
from birthplace_lm.inference.weights import load_weights
from birthplace_lm.models.build import build_model
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.identity import config_hash, hashed_config
from birthplace_lm.runs.metrics import STAGE_RESULT, StageResult
from birthplace_lm.training.allocator import disable_malloc_trim
from birthplace_lm.training.callbacks.checkpointing import CheckpointCallback, VerifiedCheckpointIO
from birthplace_lm.training.callbacks.curves import CURVES_STATE, TrainingCurves
from birthplace_lm.training.callbacks.ema import EMA
from birthplace_lm.training.callbacks.progress import progress
from birthplace_lm.training.callbacks.samples import AttentionMaps, SampleAnswers
from birthplace_lm.training.callbacks.step_limit import StepLimit
from birthplace_lm.training.distributed.fsdp import resolve_strategy
from birthplace_lm.training.distributed.launcher import fit_in_processes
from birthplace_lm.training.lightning_module import LanguageModelModule
from birthplace_lm.training.preflight import build_datamodule, probe_trainer

log = logging.getLogger(__name__)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its news would fill the log

EARLY_STOP_FLAGS = ("max_time", "limit_train_batches", "overfit_batches", "fast_dev_run")


def fit_stage(name: str, config: DictConfig, corpus: Corpus, folder: Path, start: Path | None) -> StageResult:
    """Train one stage to its end, from its newest checkpoint if it has one, else from `start`.

    With several devices the training happens in as many processes of this program.
    """
    result = folder / STAGE_RESULT
    if not (
        result.is_file()
        and checkpoint.is_intact(checkpoint.checkpoint_path(folder, StageResult.read(result).steps))
    ):
        folder.mkdir(parents=True, exist_ok=True)
        resume = _resume_from(name, folder, config.resume)
        if resume is None and result.is_file() and config.resume == "auto":
            raise CheckpointError(
                f"{folder}: finished, but its checkpoint is gone; remove {STAGE_RESULT} there"
            )
        if resume is not None and resume.resolve().parent != folder.resolve():
            # It may be the last of its stage, after which none is saved.
            resume = checkpoint.copy_into(LoadedCheckpoint.read(resume), folder)
        for damaged in checkpoint.quarantine_and_prune(folder, resume):
            log.warning("a damaged checkpoint was set aside as %s", damaged)
        if resume is not None:
            log.info("%s: resuming after step %d, from %s", name, checkpoint.parse_step(resume), resume)
        probe = probe_trainer(config)
        if probe.strategy.launcher is None:
            train_stage(name, config, corpus, folder, start, resume)
        else:
            fit_in_processes(probe.num_devices, name, config, folder, start, resume)
    return StageResult.read(result)


def train_stage(
    name: str, config: DictConfig, corpus: Corpus, folder: Path, start: Path | None, resume: Path | None
) -> None:
    """What every process of a stage does; leaves the last checkpoint and the result in `folder`.

    Args:
        start: a checkpoint whose weights to begin with.
        resume: one to go on from, which beats `start`.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    disable_malloc_trim()
    stage = config.stages[name]
    model = build_model(config.model, len(corpus.vocab))
    if resume is None and start is not None:
        load_weights(model, start)
    data = build_datamodule(config, stage, corpus)
    module = LanguageModelModule(
        stage=name,
        model=model,
        vocab=corpus.vocab,
        optimizer=instantiate(config.optimizer),
        learning_rate=stage.learning_rate,
        schedule=instantiate(stage.schedule),
        max_steps=config.trainer.max_steps,
        seed=config.seed,
        max_nonfinite_steps=config.max_nonfinite_steps if config.on_nonfinite == "skip" else 0,
        folder=folder,
    )
    before = {} if start is None else checkpoint.load(start).get("callbacks", {})
    meter = TrainingCurves(name, before.get(CURVES_STATE))
    callbacks = [meter, *_callbacks(name, config, corpus, folder, resume)]
    trainer = _trainer(config, stage, folder, callbacks, resume)
    log.info("%s: %d parameters, %d rows an epoch", name, model.num_parameters, data.train_rows)
    with warnings.catch_warnings():
        # Lightning looks for a state in the loader; ours is in the data module.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning and torch
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.global_step < module.total_steps:
        said = f"{name} ended after step {trainer.global_step} of {module.total_steps}"
        if not (by := [key for key in EARLY_STOP_FLAGS if config.trainer[key]]):
            raise InternalError(said)
        log.info("%s, by trainer.%s", said, by[0])
    if trainer.is_global_zero:
        spent = meter.state_dict()
        result = StageResult(
            trainer.global_step, trainer.current_epoch, spent["characters"], spent["seconds"], spent["loss"]
        )
        result.write(folder / STAGE_RESULT)


def _callbacks(
    name: str, config: DictConfig, corpus: Corpus, folder: Path, resume: Path | None
) -> list[L.Callback]:
    saved = {
        "format": checkpoint.FORMAT,
        "stage": name,
        "config": OmegaConf.to_yaml(config),
        "config_sha256": config_hash(hashed_config(config)),
        "vocab": list(corpus.vocab.symbols),
        "data": corpus.sha256,
    }
    ema = config.stages[name].ema_decay
    return [
        SampleAnswers(name),
        AttentionMaps(name),
        *progress(name, config.trainer.enable_progress_bar),
        StepLimit(),
        *([EMA(ema)] if ema else []),
        CheckpointCallback(
            folder, config.checkpoint.every_n_steps, config.checkpoint.keep_last, saved, resume
        ),
    ]


def _resume_from(stage: str, folder: Path, resume: str) -> Path | None:
    """The checkpoint that was asked for, if it is of this stage; else the newest whole one of the folder."""
    if resume == "never":
        return None
    if resume != "auto":
        asked = Path(resume).expanduser()
        if checkpoint.load(asked)["birthplace_lm"]["stage"] == stage:
            return asked
    return checkpoint.latest_intact(folder)


def _trainer(
    config: DictConfig, stage: DictConfig, folder: Path, callbacks: list[L.Callback], resume: Path | None
) -> L.Trainer:
    own = {
        key: config.trainer[key] if config.trainer[key] is not None else stage[key]
        for key in ("max_epochs", "check_val_every_n_epoch")
    }
    # So many that the last epoch ends with a validation.
    every = min(own["check_val_every_n_epoch"], own["max_epochs"])
    own["check_val_every_n_epoch"] = next(n for n in range(every, 0, -1) if own["max_epochs"] % n == 0)
    _await_new_second(folder)
    # "" keeps the event files of a stage in one folder; what was logged after the checkpoint comes again.
    purge = 0 if resume is None else checkpoint.parse_step(resume)
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False, purge_step=purge)
    trainer: L.Trainer = instantiate(
        config.trainer,
        **own,
        strategy=resolve_strategy(config.trainer.strategy),
        max_steps=-1,  # see StepLimit
        enable_progress_bar=False,  # Lightning's; ours is among the callbacks
        default_root_dir=str(folder),
        logger=logger,
        callbacks=callbacks,
        plugins=[VerifiedCheckpointIO(), LightningEnvironment()],  # the processes are ours, also under Slurm
        enable_checkpointing=False,
        profiler=_profiler(config.trainer.profiler, folder),
        use_distributed_sampler=False,
    )
    # Lightning's handlers would end a run with code 0 within a window of accumulated batches; see `signals`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _profiler(name: str | None, folder: Path) -> Any:
    """One that leaves what it has found in the folder of the stage."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    return None if name is None else kinds[name](dirpath=folder, filename="profile")


def _await_new_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which hold the time in whole seconds."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)
