"""Which settings decide the result of a run, and the name of the folder that follows from them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What a run may differ in and still end with the same numbers.
EXCLUDED_FROM_HASH = (
    "runs_root",
    "run_dir",
    "resume",
    "overwrite",
    "dry_run",
    "traceback",
    "checkpoint",
    "precision",  # that of the trainer has it
)
TRAINER_EXCLUDED_FROM_HASH = (
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "profiler",
)


def hashed_config(config: DictConfig) -> dict[str, Any]:
    """The part of the configuration that the result depends on."""
    kept: Any = OmegaConf.to_container(config)
    for key in EXCLUDED_FROM_HASH:
        kept.pop(key)
    for key in TRAINER_EXCLUDED_FROM_HASH:
        kept["trainer"].pop(key)
    for name, stage in kept["stages"].items():
        stage.pop("num_workers")
        if not stage["enabled"]:
            kept["stages"][name] = {"enabled": False}
    if kept["data"]["root"] is not None:
        kept["data"]["root"] = os.path.realpath(kept["data"]["root"])
    return kept


def pretraining_hashed_config(config: DictConfig) -> dict[str, Any]:
    """The part that determines the weights after pretraining: finetuning does not."""
    kept = hashed_config(config)
    kept["stages"].pop("finetune")
    return kept


def config_hash(kept: Mapping[str, Any]) -> str:
    """A hash that names an identity."""
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def run_directory(config: DictConfig) -> Path:
    """Where a run lives: `run_dir`, or a name made of its identity, so that the same command comes back."""
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    return Path(config.runs_root).expanduser() / _name(config, hashed_config(config))


def pretraining_directory(config: DictConfig) -> Path:
    """Where a pretraining lives, shared by all runs that need the same one."""
    return (
        Path(config.runs_root).expanduser() / "pretrained" / _name(config, pretraining_hashed_config(config))
    )


def _name(config: DictConfig, kept: Mapping[str, Any]) -> str:
    digest = config_hash(kept)
    labels = config.labels
    return f"{labels.attention}-{labels.pretrain}-{labels.data}-s{config.seed}-{digest[:8]}"


def first_difference(one: Any, other: Any, key: str = "") -> str:
    """The first key, in alphabetical order, in which two nested dictionaries differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                return first_difference(one.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    return key
