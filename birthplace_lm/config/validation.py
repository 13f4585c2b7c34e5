"""Checks of a composed configuration: ranges, names, text that can be saved, combinations."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.allowlist import COLLECTIONS
from birthplace_lm.config.groups import PATH_KEYS, options
from birthplace_lm.config.messages import suggest, unknown_key
from birthplace_lm.config.schema import BATCH_LIMITS
from birthplace_lm.errors import InputError

# What config.yaml cannot hold and read back: control characters, line separators, surrogates other than those
# of undecodable bytes in a path, interpolations, and OmegaConf's mark of a missing value.
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udc7f\udd00-\udfff]|\$\{|^\?\?\?$")


def check_values(schema: Any, node: DictConfig, prefix: str = "") -> None:
    """Check every key and value against the schema.

    Raises:
        InputError: a key is unknown, or a value is out of range or of another kind.
    """
    names = [f.name for f in fields(schema)]
    for name in map(str, node):
        if name not in names:
            raise unknown_key(prefix + name, names)
    for f in fields(schema):
        value, key = node[f.name], prefix + f.name
        if is_dataclass(f.type):
            if not isinstance(value, DictConfig):
                raise InputError(f"{key}={value}: must be a mapping; give {key}.KEY=VALUE")
            check_values(f.type, value, f"{key}.")
        elif "factory" in f.metadata and not (isinstance(value, DictConfig) and "_target_" in value):
            if value is None and f.default is None:
                continue
            raise InputError(f"{key}={value}: must be a mapping with {key}._target_, a class or function")
        elif f.name in COLLECTIONS:
            for option, entry in value.items():
                if not (isinstance(entry, DictConfig) and "_target_" in entry):
                    full = f"{key}.{option}"
                    raise InputError(
                        f"{full}={entry}: must be a mapping with {full}._target_, a class or function"
                    )
        elif f.name == "plugins":
            if not OmegaConf.is_list(value) or not all(isinstance(package, str) for package in value):
                raise InputError(f"plugins={value}: must be a list of packages: 'plugins=[my_package]'")
            wrong = [p for p in value if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", p)]
            if wrong or any(p.partition(".")[0] == "birthplace_lm" for p in value):
                raise InputError(f"plugins={value}: {[*wrong, 'birthplace_lm'][0]} is not a package of yours")
        elif "words" in f.metadata and value not in f.metadata["words"]:
            words = [word for word in f.metadata["words"] if word is not None]
            shown = [str(word).lower() if isinstance(word, bool) else word for word in words]
            raise InputError(f"{key}={value}: unknown; {suggest(str(value), shown)}")
        elif "low" in f.metadata and value is not None:
            low, high = f.metadata["low"], f.metadata["high"]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{key}={value}: must be a number from {low} to {high}")
            if not low <= value <= high:  # also refuses nan
                nearest = high if value > high else low
                raise InputError(f"{key}={value}: must be from {low} to {high}; the nearest is {nearest}")
        elif f.type is Any and "factory" not in f.metadata:
            if isinstance(value, DictConfig):
                raise InputError(f"{key}={value}: must not be a mapping")
            if value != value:
                raise InputError(f"{key}=nan: must not be nan")


def check_literals(value: Any, key: str = "") -> None:
    """Check that config.yaml can hold every text and read it back unchanged.

    Raises:
        InputError: a text is empty or holds a forbidden character, or a key is no text.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InputError(f"{key}={value}: {name} is not a name; quote it")
            check_literals(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            check_literals(item, key)
    elif isinstance(value, str):
        if value == "":
            raise InputError(f"{key}=: must not be empty; give a value, or null for none")
        if forbidden := _FORBIDDEN_CHARS.search(value):
            raise InputError(f"{key}={value}: {forbidden[0]} cannot be part of a value")


def check_names(config: DictConfig) -> None:
    """Check that a run directory lies below `runs_root`, and that `~` in paths can be expanded.

    Raises:
        InputError: a label or a path cannot be used.
    """
    for group, name in config.labels.items():
        if not re.fullmatch(r"[\w-]{1,64}", name):
            raise InputError(
                f"labels.{group}={name}: must be letters, digits, _ and -, at most 64: it names the run"
                f" directory; the options of {group} are {', '.join(options()[str(group)])}"
            )
    for key in PATH_KEYS:
        path = OmegaConf.select(config, key) or "."
        if "://" in path:
            raise InputError(f"{key}={path}: a URL; give the path of a file or folder on this machine")
        try:
            Path(path).expanduser()
        except RuntimeError as error:
            user = path.partition("/")[0]
            raise InputError(
                f"{key}={path}: cannot expand {user}: unknown user; use an absolute path"
            ) from error


def check_combinations(config: DictConfig) -> None:
    """Check values that are valid alone and contradict one another.

    Raises:
        InputError: with both keys.
    """
    model, stages, trainer = config.model, config.stages, config.trainer
    if model.n_embd % model.n_head:
        nearest = round(model.n_embd / model.n_head) * model.n_head or model.n_head
        raise InputError(
            f"model.n_embd={model.n_embd}: not divisible by model.n_head={model.n_head}; nearest is {nearest}"
        )
    if not (stages.pretrain.enabled or stages.finetune.enabled):
        raise InputError("stages.finetune.enabled=False: with pretrain=none there is nothing to train")
    if not stages.pretrain.enabled and config.labels.pretrain in ("span_corruption", "language_modeling"):
        raise InputError("stages.pretrain.enabled=False: give pretrain=none, which also names the run so")
    devices = ",".join(map(str, trainer.devices)) if OmegaConf.is_list(trainer.devices) else trainer.devices
    if not re.fullmatch(r"auto|-1|\d+(, ?\d+)*,?", str(devices)):
        raise InputError(f"trainer.devices={trainer.devices}: must be a number, a list of indices, or auto")
    if not isinstance(trainer.fast_dev_run, int | None):
        raise InputError(
            f"trainer.fast_dev_run={trainer.fast_dev_run}: must be true, false or a number of batches"
        )
    if trainer.max_steps == 0:
        raise InputError("trainer.max_steps=0: must be 1 or more, or -1 for no limit")
    if trainer.overfit_batches is None:
        raise InputError("trainer.overfit_batches=null: must be a number; 0 trains on all batches")
    for key in BATCH_LIMITS:
        if isinstance(trainer[key], float) and trainer[key] > 1:
            raise InputError(
                f"trainer.{key}={trainer[key]}: must be a whole number of batches, or a fraction up to 1.0"
            )
    if trainer.val_check_interval == 0:
        raise InputError(f"trainer.val_check_interval={trainer.val_check_interval}: must be above 0")
    if trainer.accelerator == "cpu" and trainer.precision.startswith("16"):
        raise InputError(f"trainer.precision={trainer.precision}: needs a GPU; take bf16-mixed")
    if trainer.strategy == "fsdp2" and (stages.pretrain.ema_decay or stages.finetune.ema_decay):
        raise InputError("trainer.strategy=fsdp2: does not support EMA; give both stages ema_decay=0")
    if config.init_from is not None and stages.pretrain.enabled:
        raise InputError(f"init_from={config.init_from}: it replaces pretraining; give pretrain=none as well")
