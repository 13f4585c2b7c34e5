"""A trained model as a folder to give away; nothing in it is ever executed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.analysis.model_card import model_card
from birthplace_lm.config.compose import load_saved
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.language_model import VOCABULARY, WEIGHTS, TrainedModel
from birthplace_lm.runs.atomic_files import atomic_replace, atomic_write_text
from birthplace_lm.runs.directory import RunDirectory

MACHINE_SPECIFIC = {
    "data.root": None,
    "runs_root": "runs",
    "run_dir": None,
    "resume": "auto",
    "init_from": None,
}


def export(run: Path, out: Path) -> None:
    """Write `model.safetensors`, `config.yaml`, `vocab.json` and a model card, for `birthplace_lm.load` too.

    Paths of this machine are left out of the configuration.

    Raises:
        InputError: `run` is no run directory, or `out` is not empty.
        CheckpointError: its checkpoint is not whole, or `out` cannot be written.
    """
    trained = TrainedModel.from_run(run)
    config = load_saved(run / "config.yaml")
    metrics = RunDirectory(run, config).metrics
    export_model(trained, config, out, metrics, "Trained with birthplace_lm.")


def export_model(
    trained: TrainedModel, config: DictConfig, out: Path, metrics: Mapping[str, Any], origin: str
) -> None:
    """The same for a model that is no run's; see `model_card` for the last two."""
    card = model_card(config, trained.model.num_parameters, metrics, origin)
    given = OmegaConf.create(OmegaConf.to_yaml(config))
    for key, value in MACHINE_SPECIFIC.items():
        OmegaConf.update(given, key, value)
    weights = {name: weight.contiguous().clone() for name, weight in trained.model.state_dict().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out}: is not empty; give a new folder")
        with atomic_replace(out / WEIGHTS, safetensors.torch.save(weights, {"format": "pt"})):
            atomic_write_text(out / "config.yaml", OmegaConf.to_yaml(given))
            atomic_write_text(out / "README.md", card)
            atomic_write_text(
                out / VOCABULARY, json.dumps(trained.vocab.to_dict(), ensure_ascii=False) + "\n"
            )
    except OSError as error:
        raise CheckpointError(f"{error.filename or out}: {error.strerror}") from error
