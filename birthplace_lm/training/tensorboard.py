"""TensorBoard's HParams tab."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from birthplace_lm.runs.metrics import RunMetrics

HYPERPARAMETERS = ".hparams"  # ends the name of the event file that holds them


def log_hyperparameters(config: DictConfig, metrics: RunMetrics, folder: Path) -> None:
    """Fill TensorBoard's HParams tab: the hyperparameters of a run and its results."""
    stages = config.stages
    chosen = {
        **config.labels,
        "seed": config.seed,
        "parameters": metrics.parameters,
        **{key: config.model[key] for key in ("n_layer", "n_head", "n_embd", "dropout")},
        "precision": config.trainer.precision,
        **_plain("optimizer", config.optimizer),
    }
    for name, stage in stages.items():
        chosen |= {
            f"{name}.{key}": (config.trainer.get(key) or stage[key]) if stage.enabled else 0
            for key in ("max_epochs", "batch_size", "learning_rate", "ema_decay")
        }
        if stage.enabled:
            chosen |= {
                k: v for k, v in _plain(f"{name}.dataset", stage.dataset).items() if k != f"{name}.dataset"
            }
    reached = {
        "final/dev_exact_match": metrics.dev.exact_match,
        **({} if metrics.holdout is None else {"final/holdout_exact_match": metrics.holdout.exact_match}),
        "final/loss": metrics.loss or 0.0,
        "final/million_characters": metrics.characters / 1e6,
        "final/seconds": metrics.training_seconds,
    }
    for old in folder.glob(f"*{HYPERPARAMETERS}"):  # the run was killed after it had written them
        old.unlink()
    logger = TensorBoardLogger(
        folder, name="", version="", default_hp_metric=False, filename_suffix=HYPERPARAMETERS
    )
    logger.log_hyperparams(chosen, reached)
    logger.finalize("success")


def _plain(key: str, node: Any) -> dict[str, bool | int | float | str]:
    """Columns of a factory: its name, and each of its arguments that is a number or a string."""
    if not isinstance(node, DictConfig):
        return {key: node} if isinstance(node, bool | int | float | str) else {}
    columns: dict[str, bool | int | float | str] = {}
    for name, inner in node.items():
        if name == "_target_":
            columns[key] = str(inner).rpartition(".")[2]
        elif name != "_partial_":
            columns |= _plain(f"{key}.{name!s}", inner)
    return columns
