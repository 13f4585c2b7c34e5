"""What `train.py` does with a composed configuration; torch is not imported before everything is checked."""

import logging
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from birthplace_lm.config import checked
from birthplace_lm.data.corpus import read_corpus
from birthplace_lm.error import BirthplaceError
from birthplace_lm.runs import check_claim, pretraining_directory, run_directory

log = logging.getLogger("birthplace_lm")
_failed_jobs: list[BirthplaceError] = []


def run(config: DictConfig) -> float | None:
    """Check everything, then train; the dev exact match, or None for a dry run.

    Raises:
        BirthplaceError: in a sweep it has been shown already, and the other jobs go on.
    """
    _log_to_console()
    try:
        return _run(config)
    except BirthplaceError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            fail(error)
            _failed_jobs.append(error)
        raise


def fail(error: BirthplaceError) -> int:
    """Say what went wrong in one line and give the exit code; 1 when it was a job of a sweep."""
    if _failed_jobs:
        return 1
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _run(config: DictConfig) -> float | None:
    config = checked(config)
    path = run_directory(config)
    check_claim(path, config)
    corpus = read_corpus(config.data, config.model.block_size)
    if config.dry_run:
        _show({"run": path, "data": corpus.notes[0], **_plan(config)})
        return None
    from birthplace_lm.pipeline import run as run_pipeline  # torch and lightning take seconds to import

    metrics = run_pipeline(config, corpus)
    _show(_summary(metrics, config))
    return float(metrics["dev"]["exact_match"])


def _plan(config: DictConfig) -> dict[str, Any]:
    plan: dict[str, Any] = {}
    for name, stage in config.stages.items():
        epochs = config.trainer.max_epochs if config.trainer.max_epochs is not None else stage.max_epochs
        plan[name] = f"{epochs} epochs, batches of {stage.batch_size}" if stage.enabled else "none"
    if config.stages.pretrain.enabled:
        plan["pretrain"] += f", in {pretraining_directory(config)}"
    return plan


def _summary(metrics: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    dev, baseline = metrics["dev"], metrics["baseline"]
    path = run_directory(config)
    return {
        "model": f"{metrics['attention']}, {metrics['parameters']:,} parameters",
        "pretraining": metrics["pretrain"],
        "dev exact match": f"{dev['correct']} of {dev['total']}: {dev['exact_match']:.1%}",
        f"always {baseline['answer']!r}": (
            f"{baseline['correct']} of {baseline['total']}: {baseline['exact_match']:.1%}"
        ),
        "run directory": path,
        "curves": f"tensorboard --logdir {config.runs_root if config.run_dir is None else path}",
    }


def _show(rows: dict[str, Any]) -> None:
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _log_to_console() -> None:
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.INFO)
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        log.propagate = False
        logging.captureWarnings(True)
        for name in ("lightning.pytorch", "py.warnings"):
            logging.getLogger(name).propagate = False  # into log.txt, not onto the screen
