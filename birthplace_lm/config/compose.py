"""Composing and reading configurations, and saying in one line what is wrong with them.

Imports neither torch nor lightning, so that a mistake shows at once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from birthplace_lm.config.allowlist import check_allowlist
from birthplace_lm.config.precision import auto_precision
from birthplace_lm.config.schema import Config
from birthplace_lm.errors import InputError, suggest

CONF = Path(__file__).parents[2] / "conf"
# Not the same again from config.yaml: control characters, line separators, half characters other than the
# undecodable bytes of a path, interpolations and the sign for a missing value.
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udc7f\udd00-\udfff]|\$\{|^\?\?\?$")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose and check the configuration that `python train.py OVERRIDES` would run.

    Raises:
        InputError: for whatever is wrong with the overrides.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = hydra.compose("train", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
        except Exception as error:  # of any kind: a TypeError at attention=[{a:1}], an OSError at a long name
            raise to_input_error(error) from error
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        return resolve_and_validate(config)


def resolve_and_validate(config: DictConfig) -> DictConfig:
    """The resolved, read-only configuration, whether it was composed or read from a file.

    Raises:
        InputError: a value is missing, unknown, of another type or out of range, values contradict each
            other, or a `_target_` is not one of ours.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), config)  # type: ignore[assignment]
        OmegaConf.set_readonly(config, False)  # the copy: what is checked twice comes read-only
        for missing in sorted(OmegaConf.missing_keys(config)):
            raise InputError(f"{missing} is missing; give {missing}=VALUE")
        if config.trainer.precision == "auto":
            config.trainer.precision = auto_precision(config.trainer.accelerator)
        config.precision = config.trainer.precision
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError, OverflowError, RecursionError) as error:
        raise to_input_error(error) from error
    _check_literal(values, "")
    config = DictConfig(values)
    _check_values(Config, config, "")
    _check_names(config)
    check_allowlist(config, "")
    model, stages = config.model, config.stages
    if model.n_embd % model.n_head:
        near = round(model.n_embd / model.n_head) * model.n_head or model.n_head
        raise InputError(
            f"model.n_embd={model.n_embd}: not divisible by model.n_head={model.n_head}; nearest is {near}"
        )
    if not (stages.pretrain.enabled or stages.finetune.enabled):
        raise InputError("stages.finetune.enabled=False: with pretrain=none there is nothing to train")
    if config.trainer.accelerator == "cpu" and config.trainer.precision.startswith("16"):
        raise InputError(f"trainer.precision={config.trainer.precision}: needs a GPU; take bf16-mixed")
    if config.trainer.strategy == "fsdp2" and (stages.pretrain.ema_decay or stages.finetune.ema_decay):
        raise InputError("trainer.strategy=fsdp2: keeps no average of weights; give both stages ema_decay=0")
    if config.init_from is not None and stages.pretrain.enabled:
        raise InputError(f"init_from={config.init_from}: it replaces pretraining; give pretrain=none as well")
    OmegaConf.set_readonly(config, True)
    return config


def load_saved(file: Path) -> DictConfig:
    """The resolved configuration of a run, from its config.yaml. Nothing is looked up on its behalf.

    Raises:
        InputError: it is not what we write.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("has aliases, by which few lines can stand for any number")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise ValueError("is no mapping")
        if "${" in str(OmegaConf.to_container(config)):  # resolved, it could tell what is in the environment
            raise ValueError("has interpolations, and a run's are resolved")
        return resolve_and_validate(config)
    except Exception as error:  # of any kind: YAML, OmegaConf and Python each have their own
        said, *_ = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{file}: {said}") from error


def to_input_error(error: Exception) -> InputError:
    """What Hydra or OmegaConf complain about, in one line with the closest valid names."""
    groups = [*_options()]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, wrong = error.missing_cfg_file.rpartition("/")
        return InputError(f"{group}={wrong}: unknown; {suggest(wrong, error.options)}")
    if isinstance(error, OverrideParseException):
        return InputError(f"{error.override}: cannot be read; expected KEY=VALUE")
    if isinstance(error, RecursionError):
        return InputError("brackets within brackets: nested too deeply; give a plain value")
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if first.startswith("Config group override must be") or isinstance(error, TypeError):
        return InputError(f"no name for a group: {', '.join(sorted(groups))} need that of a file")
    if match := re.match(r"Ambiguous value for argument '(.*)'", first):
        return InputError(f"{match[1]}: several values; add -m to run each, or write [...] for a list")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return InputError(f"{mark.name}:{mark.line + 1}: not YAML: {error.problem}")
    source = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    stated = re.search(r"^ *full_key: (\S+)$", str(error), re.MULTILINE)
    key = str(getattr(source, "full_key", None) or (stated[1] if stated else ""))
    parent = getattr(source, "parent_node", None)
    if isinstance(source, ConfigAttributeError | ConfigKeyError) and isinstance(parent, DictConfig):
        return _unknown(key, [*map(str, parent), *([] if "." in key else groups)])
    if match := re.match(r"Could not override '([^']+)'", first):
        return _unknown(match[1], groups)
    message, *_ = str(source).strip().splitlines() or [first]
    if match := re.search(r"hydra:runtime\.choices\.(\w+)", message):
        return _unknown(match[1], groups)
    if match := re.match(r"Error merging override (.*)", first):
        key = match[1]
    if "is not Optional" in message:
        message = "must not be null"
    return InputError(f"{key}: {message}" if key and key not in message else message)


def _unknown(key: str, siblings: Sequence[str]) -> InputError:
    """`siblings`: the last parts of the keys that are valid in its place."""
    if names := _options().get(key):  # a group, but what it was given is no name
        return InputError(f"{key}: needs one name; valid: {', '.join(names)}")
    prefix, dot, wrong = key.rpartition(".")
    elsewhere = [name for name in _keys(Config, "") if name.endswith(f".{wrong}")]
    valid = [name for name in siblings if not name.startswith("_")]
    return InputError(f"{key}: unknown key; {suggest(wrong, valid, prefix + dot, elsewhere)}")


def _options() -> dict[str, list[str]]:
    """The names that every group can be given."""
    files = sorted(CONF.glob("*/*.yaml"))
    return {file.parent.name: [f.stem for f in files if f.parent == file.parent] for file in files}


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
            if not isinstance(value, DictConfig):
                raise InputError(f"{key}={value}: must be a mapping; give {key}.KEY=VALUE")
            _check_values(f.type, value, f"{key}.")
        elif "factory" in f.metadata and not (isinstance(value, DictConfig) and "_target_" in value):
            raise InputError(f"{key}={value}: must be a mapping that names in {key}._target_ what makes it")
        elif "words" in f.metadata and value not in f.metadata["words"]:
            words = [word for word in f.metadata["words"] if word is not None]
            raise InputError(f"{key}={value}: unknown; {suggest(str(value), words)}")
        elif "low" in f.metadata and value is not None:
            low, high = f.metadata["low"], f.metadata["high"]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{key}={value}: must be a number from {low} to {high}")
            if not low <= value <= high:  # also refuses nan
                near = high if value > high else low
                raise InputError(f"{key}={value}: must be from {low} to {high}; the nearest is {near}")
        elif f.type is Any and "factory" not in f.metadata:
            if isinstance(value, DictConfig):
                raise InputError(f"{key}={value}: must not be a mapping")
            if value != value:
                raise InputError(f"{key}=nan: must not be nan")


def _check_literal(value: Any, key: str) -> None:
    """Refuse text that would mean something else as a path, or when read again from config.yaml."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InputError(f"{key}={value}: {name} is no name; quote it")
            _check_literal(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            _check_literal(item, key)
    elif isinstance(value, str):
        if value == "":
            raise InputError(f"{key}=: must not be empty; give a value, or null for none")
        if found := _FORBIDDEN_CHARS.search(value):
            raise InputError(f"{key}={value}: {found[0]} cannot be part of a value")


def _check_names(config: DictConfig) -> None:
    """Refuse what would put a run elsewhere than below `runs_root`, and a home that nobody has."""
    for group, name in config.labels.items():
        if not re.fullmatch(r"[\w-]{1,64}", name):
            raise InputError(
                f"labels.{group}={name}: must be letters, digits, _ and -, at most 64: it names the run"
                f" directory; {group} has {', '.join(_options()[str(group)])}"
            )
    for key in ("runs_root", "run_dir", "resume", "init_from", "data.root"):
        value = OmegaConf.select(config, key)
        if "://" in (value or ""):
            raise InputError(f"{key}={value}: a URL; give the path of something on this machine")
        try:
            Path(value or ".").expanduser()
        except RuntimeError as error:
            raise InputError(f"{key}={value}: there is no such home; write the path in full") from error
