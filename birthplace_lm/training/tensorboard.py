"""TensorBoard's HParams tab."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from birthplace_lm.runs.identity import TRAINER_EXCLUDED_FROM_HASH, TRAINER_OVERRIDES
from birthplace_lm.runs.metrics import RunMetrics

HYPERPARAMETERS = ".hparams"  # ends the name of the event file that holds them
SECTIONS = ("data", "model", "optimizer", "trainer")  # of the configuration, besides the stages
# "attention" names the attention already; the others do not decide the weights.
WITHOUT_EFFECT = {"model.attention", "trainer", *(f"trainer.{key}" for key in TRAINER_EXCLUDED_FROM_HASH)}

Value = bool | int | float | str


def log_hyperparameters(config: DictConfig, metrics: RunMetrics, folder: Path) -> None:
    """Fill TensorBoard's HParams tab: the hyperparameters of a run and its results.

    They have no description of the experiment, as `add_hparams` would write it: without one TensorBoard
    compares the runs by itself and shows first what differs.
    """
    results = {
        "dev_exact_match": metrics.dev.exact_match,
        **({} if metrics.holdout is None else {"holdout_exact_match": metrics.holdout.exact_match}),
        "loss": metrics.loss or 0.0,
        "million_characters": metrics.characters / 1e6,
        "seconds": metrics.training_seconds,
    }
    for old in folder.glob(f"*{HYPERPARAMETERS}"):  # the run was killed after it had written them
        old.unlink()
    _, start, end = hparams(hyperparameters(config, metrics), results)  # the first describes the experiment
    with SummaryWriter(folder, filename_suffix=HYPERPARAMETERS) as writer:
        writer.file_writer.add_summary(start)
        for name, value in results.items():
            writer.add_scalar(f"final/{name}", value, 0)
        writer.file_writer.add_summary(end)


def hyperparameters(config: DictConfig, metrics: RunMetrics) -> dict[str, Value]:
    """The labels and numbers of a configuration by short names; those of a disabled stage are left out."""
    chosen: dict[str, Value] = {**config.labels, "seed": config.seed, "parameters": metrics.parameters}
    for key in ("init_from", "extend_from"):
        chosen |= _plain(key, config[key])
    for section in SECTIONS:
        chosen |= _plain(section, config[section])
    chosen = {key: value for key, value in chosen.items() if key not in WITHOUT_EFFECT}
    for name, stage in config.stages.items():
        if stage.enabled:
            overrides = {f"{name}.{key}": config.trainer[key] for key in TRAINER_OVERRIDES}
            used = {key: value for key, value in overrides.items() if value is not None}
            chosen |= {**_plain(str(name), stage), **used}
    return chosen


def _plain(key: str, node: Any) -> dict[str, Value]:
    """Columns of a section: its factory's name, and each of its values that is a number or a string."""
    if not isinstance(node, DictConfig):
        return {key: node} if isinstance(node, bool | int | float | str) else {}
    columns: dict[str, Value] = {}
    for name, inner in node.items():
        if name == "_target_":
            columns[key] = str(inner).rpartition(".")[2]
        elif name != "_partial_":
            columns |= _plain(f"{key}.{name!s}", inner)
    return columns
