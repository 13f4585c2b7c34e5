"""The schema of the configuration: types and ranges of our own numbers, and errors in one line.

Imports neither torch nor lightning, so that a mistake shows at once.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from birthplace_lm.error import InputError

CONF = Path(__file__).parents[1] / "conf"
PACKAGE = Path(__file__).parent
TARGETS = ("lightning.Trainer",)  # what a config may name to be called, besides what our own files define
FACTORY = {"factory": True}  # of a field that names in `_target_` what makes the object
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str, "None": type(None)}


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """A field whose value, unless it is None, lies in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass
class Model:
    """Sizes of the GPT; the attention's yaml adds its factory."""

    n_layer: int = number(1, 1000, 4)
    n_head: int = number(1, 1000, 8)
    n_embd: int = number(1, 100_000, 256)
    block_size: int = number(8, 1_000_000, 128)
    dropout: float = number(0.0, 0.99, 0.0)
    position_table: bool = True
    attention: Any = field(default=MISSING, metadata=FACTORY)


@dataclass
class Data:
    """Where the files are, relative to `root`; None means the embedded corpus."""

    root: str | None = MISSING
    corpus: str = MISSING
    train: str = MISSING
    dev: str = MISSING
    test: str | None = None
    holdout: int = number(0, 1_000_000, 0)


@dataclass
class Stage:
    """One call of fit: pretraining or finetuning."""

    enabled: bool = True
    max_epochs: int = number(0, 1_000_000)
    check_val_every_n_epoch: int = number(1, 1_000_000, 1)
    batch_size: int = number(1, 1_000_000)
    learning_rate: float = number(1e-12, 1.0)
    shuffle: bool = True
    pool: int = number(1, 1_000_000, 8)
    num_workers: int = number(0, 64, 0)
    data: Any = field(default=MISSING, metadata=FACTORY)
    schedule: Any = field(default=MISSING, metadata=FACTORY)


@dataclass
class Stages:
    """The stages in their order."""

    pretrain: Stage = field(default_factory=Stage)
    finetune: Stage = field(default_factory=Stage)


@dataclass
class Trainer:
    """The flags of Lightning's Trainer that make sense here; None leaves Lightning's default."""

    _target_: str = "lightning.Trainer"
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = number(1, 10_000, 1)
    strategy: str = "auto"
    precision: str = "32-true"
    max_epochs: int | None = number(0, 1_000_000, None)
    max_steps: int = number(-1, 1_000_000_000, -1)
    max_time: str | None = None
    accumulate_grad_batches: int = number(1, 1_000_000, 1)
    gradient_clip_val: float | None = number(0.0, 1e9, 1.0)
    gradient_clip_algorithm: str = "norm"
    check_val_every_n_epoch: int | None = number(1, 1_000_000, None)
    val_check_interval: float | None = number(0.0, 1e9, None)
    num_sanity_val_steps: int = number(-1, 1_000_000, 0)
    limit_train_batches: float | None = number(0.0, 1e9, None)
    limit_val_batches: float | None = number(0.0, 1e9, None)
    overfit_batches: float = number(0.0, 1e9, 0.0)
    fast_dev_run: Any = False
    log_every_n_steps: int = number(1, 1_000_000, 10)
    enable_progress_bar: bool = True
    enable_model_summary: bool = False
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    detect_anomaly: bool = False
    profiler: str | None = None


@dataclass
class Names:
    """What was chosen in the groups that tables compare."""

    attention: str = MISSING
    pretrain: str = MISSING
    data: str = MISSING


@dataclass
class Checkpoint:
    """How often to save within a stage, in optimizer steps, and how many to keep."""

    every_n_steps: int = number(1, 1_000_000_000, 100)
    keep: int = number(2, 1000, 2)


@dataclass
class Config:
    """Everything a run depends on."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    stages: Stages = field(default_factory=Stages)
    optimizer: Any = field(default=MISSING, metadata=FACTORY)
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    names: Names = field(default_factory=Names)
    seed: int = number(0, 2**31 - 1, 0)
    runs_root: str = "runs"
    run_dir: str | None = None
    resume: str = "auto"
    overwrite: bool = False
    dry_run: bool = False
    init_from: str | None = None


ConfigStore.instance().store(name="schema", node=Config)


def load(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose and check the configuration that `python train.py OVERRIDES` would run.

    Raises:
        InputError: for whatever is wrong with the overrides.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            OmegaConf.set_struct(config, False)
            config.pop("hydra")
            return checked(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error) from error


def checked(config: DictConfig) -> DictConfig:
    """The resolved, read-only configuration, whether it was composed or read from a file.

    Raises:
        InputError: a value is missing, unknown, of another type or out of range, values contradict each
            other, or a `_target_` is not one of ours.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), config)  # type: ignore[assignment]
        for missing in sorted(OmegaConf.missing_keys(config)):
            raise InputError(f"{missing} is missing; give {missing}=VALUE")
        config = DictConfig(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    _check_values(Config, config, "")
    _check_targets(config, "")
    model, stages = config.model, config.stages
    if model.n_embd % model.n_head:
        near = round(model.n_embd / model.n_head) * model.n_head or model.n_head
        raise InputError(
            f"model.n_embd={model.n_embd}: not divisible by model.n_head={model.n_head}; nearest is {near}"
        )
    if config.init_from is not None and stages.pretrain.enabled:
        raise InputError(f"init_from={config.init_from}: it replaces pretraining; give pretrain=none as well")
    OmegaConf.set_readonly(config, True)
    return config


def explain(error: Exception) -> InputError:
    """What Hydra or OmegaConf complain about, in one line with the closest valid names."""
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, wrong = error.missing_cfg_file.rpartition("/")
        return InputError(f"{group}={wrong}: unknown; {_closest(wrong, error.options)}")
    if isinstance(error, OverrideParseException):
        return InputError(f"{error.override}: cannot be read; expected KEY=VALUE")
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if first.startswith("Config group override must be"):
        return InputError(f"null or a number for a group: {', '.join(sorted(groups))} need a file's name")
    if match := re.match(r"Ambiguous value for argument '(.*)'", first):
        return InputError(f"{match[1]}: several values; add -m to run each, or write [...] for a list")
    source = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = str(getattr(source, "full_key", None) or "")
    parent = getattr(source, "parent_node", None)
    if isinstance(source, ConfigAttributeError | ConfigKeyError) and isinstance(parent, DictConfig):
        return _unknown(key, [*map(str, parent), *([] if "." in key else groups)])
    if match := re.match(r"Could not override '([^']+)'", first):
        return _unknown(match[1], groups)
    message, *_ = str(source).strip().splitlines() or [first]
    if match := re.match(r"Error merging override (.*)", first):
        key = match[1]
    if "is not Optional" in message:
        message = "must not be null"
    return InputError(f"{key}: {message}" if key and key not in message else message)


def _unknown(key: str, siblings: Sequence[str]) -> InputError:
    """`siblings`: the last parts of the keys that are valid in its place."""
    prefix, dot, wrong = key.rpartition(".")
    elsewhere = [name for name in _keys(Config, "") if name.endswith(f".{wrong}")]
    valid = [name for name in siblings if not name.startswith("_")]
    return InputError(f"{key}: unknown key; {_closest(wrong, valid, prefix + dot, elsewhere)}")


def _closest(wrong: str, valid: Sequence[str], prefix: str = "", elsewhere: Sequence[str] = ()) -> str:
    close = [*(prefix + name for name in difflib.get_close_matches(wrong, valid, n=1)), *elsewhere]
    listed = f"valid: {', '.join(sorted(valid))}" if len(valid) <= 20 else "see python train.py --help"
    return f"did you mean {close[0]}? {listed}" if close else listed


def _keys(schema: Any, prefix: str) -> Iterator[str]:
    for f in fields(schema):
        yield prefix + f.name
        if is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")


def _check_values(schema: Any, node: DictConfig, prefix: str) -> None:
    names = [f.name for f in fields(schema)]
    for name in map(str, node):
        if name not in names:
            raise _unknown(prefix + name, names)
    for f in fields(schema):
        value, key = node[f.name], prefix + f.name
        if is_dataclass(f.type):
            _check_values(f.type, value, f"{key}.")
        elif "factory" in f.metadata and not (isinstance(value, DictConfig) and "_target_" in value):
            raise InputError(f"{key}={value}: must be a mapping that names in {key}._target_ what makes it")
        elif "low" in f.metadata and value is not None:
            low, high = f.metadata["low"], f.metadata["high"]
            if not low <= value <= high:  # also refuses nan
                near = high if value > high else low
                raise InputError(f"{key}={value}: must be from {low} to {high}; the nearest is {near}")


def _check_targets(node: Any, key: str) -> None:
    """Configs are code: what they name is called. Only what we define is, with arguments that it takes."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            _check_arguments(node, key)
        for name in map(str, node):
            _check_targets(node[name], f"{key}.{name}".lstrip("."))
    elif OmegaConf.is_list(node):
        for item in node:
            _check_targets(item, key)


def _check_arguments(node: DictConfig, key: str) -> None:
    target = node["_target_"]
    if target in TARGETS:
        return
    arguments = _arguments(str(target))
    if arguments is None:
        raise InputError(
            f"{key}._target_={target}: not allowed; name a class or function that a file of birthplace_lm"
            f" defines, or {', '.join(TARGETS)}"
        )
    for name in (name for name in map(str, node) if not name.startswith("_")):
        if name not in arguments:
            raise _unknown(f"{key}.{name}", [*arguments])
        kinds, value = arguments[name].split(" | "), node[name]
        if not set(kinds) <= set(KINDS):
            continue
        of_a_kind = any(isinstance(value, KINDS[kind]) for kind in kinds)
        if not of_a_kind or (isinstance(value, bool) and "bool" not in kinds):
            raise InputError(f"{key}.{name}={value}: must be of type {arguments[name]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}.{name}={value}: must be finite")


@cache
def _arguments(target: str) -> dict[str, str] | None:
    """Names and types of what one of our classes or functions takes, read from its file: importing is slow.

    None: no file of ours defines it. What a file has imported does not count: `os` would be among it.
    """
    match = re.fullmatch(r"birthplace_lm((?:\.\w+)+)\.(\w+)", target)
    path = PACKAGE / f"{match[1][1:].replace('.', '/')}.py" if match else None
    if match is None or path is None or not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == match[2]:
            made_by = node.body if isinstance(node, ast.ClassDef) else [node]
            for f in made_by:
                if isinstance(f, ast.FunctionDef) and f.name in ("__init__", match[2]):
                    names = [*f.args.args, *f.args.kwonlyargs]
                    return {a.arg: ast.unparse(a.annotation) for a in names if a.annotation}
    return None
