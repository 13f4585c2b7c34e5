"""Which settings decide the weights of a run, and the name of the folder that follows from them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.schema import BATCH_LIMITS
from birthplace_lm.errors import CheckpointError
from birthplace_lm.runs.atomic_files import sha256_of
from birthplace_lm.runs.metrics import STAGE_RESULT

# Two runs may differ in these and still end with the same weights.
EXCLUDED_FROM_HASH = (
    "runs_root",
    "run_dir",
    "resume",
    "overwrite",
    "dry_run",
    "traceback",
    "stop_timeout_seconds",
    "checkpoint",
    "float32_products",  # changes the last bits alone, as the devices do
    "precision",  # trainer.precision counts, which `auto` has been replaced in
    "labels",  # part of the folder's name
    "logger",
    "plugins",  # each `_target_` names its package
    "inputs",  # take the place of the paths, see `hashed_config`
)
TRAINER_EXCLUDED_FROM_HASH = (
    # These change the last bits alone (with dropout also its masks); a resume with others logs a warning.
    "accelerator",
    "devices",
    "num_nodes",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "profiler",
    "inference_mode",
    "detect_anomaly",
)
# A stage's own value, unless the trainer has one.
TRAINER_OVERRIDES = ("max_epochs", "check_val_every_n_epoch")
CHECKPOINT_KEYS = ("init_from", "extend_from")
FILE_KEYS = ("corpus", "train", "dev", "test", "replace")


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def with_inputs(config: DictConfig, data_sha256: Mapping[str, str]) -> DictConfig:
    """The configuration with `inputs`: the SHA-256 of every file that the run reads.

    The config hash uses them instead of the paths: moving a file keeps the hash, editing it does not.

    Raises:
        CheckpointError: init_from or extend_from names no checkpoint.
    """
    inputs = dict(data_sha256)
    for key in CHECKPOINT_KEYS:
        if config[key] is not None:
            inputs[key] = sha256_of(named_checkpoint(key, config[key]))
    plain: Any = OmegaConf.to_container(config)
    identified = DictConfig({**plain, "inputs": inputs})
    OmegaConf.set_readonly(identified, True)
    return identified


def named_checkpoint(key: str, value: str) -> Path:
    """Resolve `KEY=VALUE` to the file of a checkpoint.

    The value is the path of such a file. For init_from and extend_from it can also be the directory of a
    finished run or stage, which stands for its last checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    from birthplace_lm.runs.directory import stage_directory  # which imports this module

    path = Path(value).expanduser()
    if key in CHECKPOINT_KEYS and path.name in ("pretrain", "finetune"):
        path = stage_directory(path.parent, path.name)
    if key in CHECKPOINT_KEYS and path.is_dir():
        folders = (stage_directory(path, "finetune"), stage_directory(path, "pretrain"), path)
        finished = [folder for folder in folders if (folder / STAGE_RESULT).is_file()]
        begun = [folder for folder in folders[:2] if any(folder.glob("step-*.ckpt"))]
        if finished and begun and begun[0] not in finished:
            raise CheckpointError(
                f"{key}={value}: its stage {begun[0].name} is not finished; finish it, or name another stage:"
                f" {key}={Path(value) / 'pretrain'}"
            )
        path = next((max(folder.glob("step-*.ckpt"), default=path) for folder in finished), path)
        if path.is_dir():
            raise CheckpointError(f"{key}={value}: no finished stage; name the directory of a finished run")
    if path.is_dir():
        raise CheckpointError(f"{key}={value}: a directory; give one of its files step-NUMBER.ckpt")
    if not path.is_file():
        what = "run or checkpoint" if key in CHECKPOINT_KEYS else "checkpoint"
        raise CheckpointError(f"{key}={value}: no such {what}; give the path of a local file")
    return path


def hashed_config(config: DictConfig, until: str | None = None) -> dict[str, Any]:
    """The part of the configuration that the weights depend on, in one spelling for equal settings.

    Args:
        until: a stage; its weights do not depend on the stages after it.
    """
    hashed: Any = OmegaConf.to_container(config)
    for key in EXCLUDED_FROM_HASH:
        hashed.pop(key)
    hashed["data"].pop("root")
    if not hashed["model"]["mask_pads"]:
        hashed["model"].pop("mask_pads")  # added later: earlier runs keep their names
    for key in FILE_KEYS:
        hashed["data"][key] = config.inputs.get(key, hashed["data"][key])
    for key in CHECKPOINT_KEYS:
        hashed[key] = config.inputs.get(key, hashed[key])
    skip = hashed.pop("on_nonfinite") == "skip"
    hashed["max_nonfinite_steps"] = hashed["max_nonfinite_steps"] if skip else 0
    trainer = hashed["trainer"]
    if trainer["strategy"] != "fsdp2":  # it numbers the states of the optimizer in another order
        trainer["strategy"] = None
    for key in TRAINER_EXCLUDED_FROM_HASH:
        trainer.pop(key)
    for key in BATCH_LIMITS:
        if isinstance(trainer[key], float) and trainer[key] == 1.0:
            trainer[key] = None  # a share of 1.0 is all; 1 would be one batch
    for key in ("fast_dev_run", "deterministic", "benchmark", "gradient_clip_val"):
        trainer[key] = trainer[key] or None
    overrides = {key: trainer.pop(key) for key in TRAINER_OVERRIDES}
    names = list(hashed["stages"])
    if until is not None:
        names = names[: names.index(until) + 1]
    stages = {name: hashed["stages"][name] for name in names}
    for name, stage in stages.items():
        stage.pop("num_workers")
        stage |= {key: value for key, value in overrides.items() if value is not None}
        if stage["optimizer"] is None:
            stage.pop("optimizer")
        if not stage["enabled"]:
            stages[name] = {"enabled": False}
    hashed["stages"] = stages
    if all("optimizer" in stage for stage in stages.values() if stage["enabled"]):
        hashed.pop("optimizer")  # each of them has its own
    return dict(_canonical(hashed))


def _canonical(value: Any) -> Any:
    """1.0 as 1: numbers count by value, not by spelling."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def config_hash(hashed: Mapping[str, Any]) -> str:
    """A hash that names the result of `hashed_config`."""
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def run_directory(config: DictConfig) -> Path:
    """Where a run lives: `run_dir`, or a name made of its identity, so that the same command comes back."""
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    return Path(config.runs_root).expanduser() / _name(config, hashed_config(config))


def pretraining_directory(config: DictConfig, stage: str = "pretrain") -> Path:
    """Where a stage that others start from lives, shared by all runs that need the same one."""
    return Path(config.runs_root).expanduser() / "pretrained" / _name(config, hashed_config(config, stage))


def _name(config: DictConfig, hashed: Mapping[str, Any]) -> str:
    labels = config.labels
    return f"{labels.attention}-{labels.pretrain}-{labels.data}-s{config.seed}-{config_hash(hashed)[:8]}"


def first_difference(theirs: Any, ours: Any, key: str = "") -> str:
    """The first key, in alphabetical order, in which two nested dictionaries differ, with both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted({*theirs, *ours}):
            if theirs.get(name) != ours.get(name):
                return first_difference(theirs.get(name), ours.get(name), f"{key}.{name}".lstrip("."))
    return f"{key} ({theirs} there, {ours} here)"
