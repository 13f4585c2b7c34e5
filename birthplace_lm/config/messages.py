"""One-line messages for errors of Hydra, OmegaConf and YAML, with the closest valid names."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, OmegaConfBaseException

from birthplace_lm.config.groups import conf_dir, options
from birthplace_lm.config.schema import Config
from birthplace_lm.errors import InputError

# What brings the options of hydra/launcher and hydra/sweeper that Hydra itself does not have.
PLUGINS = {
    "joblib": "'birthplace-lm[joblib]'",
    "submitit_local": "'birthplace-lm[submitit]'",
    "submitit_slurm": "'birthplace-lm[submitit]'",
    "optuna": "hydra-optuna-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
    "ax": "hydra-ax-sweeper",
}

KINDS = {"float": "a number", "integer": "a whole number", "bool": "true or false"}


def to_input_error(error: Exception) -> InputError:
    """Translate an error of Hydra, OmegaConf or YAML into one line with the closest valid names."""
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        if error.options is None:
            return InputError(
                f"{error.missing_cfg_file}.yaml: no such file; a defaults list or --config-name names it"
            )
        group, _, wrong = error.missing_cfg_file.rpartition("/")
        if group in ("hydra/launcher", "hydra/sweeper") and wrong in PLUGINS:
            return InputError(f"{group}={wrong}: not installed; pip install {PLUGINS[wrong]}")
        if group.startswith("data/"):
            path = error.missing_cfg_file.removeprefix("data/")
            return InputError(f"data={path}: needs one name, not a path; give the folder as data.root=DIR")
        return InputError(f"{group}={wrong}: unknown; {suggest(wrong, error.options)}")
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        hint = f"; text with special characters needs quotes: '{key}=\"{value}\"'" if equals else ""
        return InputError(f"{error.override}: cannot be read; expected KEY=VALUE{hint}")
    if isinstance(error, RecursionError):
        return InputError("brackets within brackets: nested too deeply; give a plain value")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return InputError(f"{mark.name}:{mark.line + 1}: not YAML: {error.problem}")
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].decode("utf-8", "replace").rpartition("\n")[2]
        return InputError(f"a configuration file is not UTF-8 text, after {line!r}; save it as UTF-8")
    if first.startswith("Config group override must be") or isinstance(error, TypeError):
        return InputError(f"no name for a group: {', '.join(sorted(options()))} need the name of a file")
    if match := re.match(r"Ambiguous value for argument '(.*)'", first):
        return InputError(f"{match[1]}: several values; add -m to run each, or write [...] for a list")
    if match := re.match(r"Multiple values for (\S+)\. To override", first):
        return InputError(f"{match[1]}: chosen twice; write {match[1]}=NAME, once and without +")
    if match := re.match(r"(\S+) appears more than once in the final defaults list", first):
        return InputError(f"{match[1]}: chosen twice; in a defaults list write `override /{match[1]}: NAME`")
    # The name of the file is in the message alone; what is wrong with it is an exception of its own.
    if isinstance(error.__context__, OmegaConfBaseException) and (match := re.match(r"In '([^']+)'", first)):
        return _mistake_in_file(match[1], error.__context__)
    cause = error.__cause__
    return _omegaconf_error(cause if isinstance(cause, OmegaConfBaseException) else error, first)


def _mistake_in_file(name: str, error: OmegaConfBaseException) -> InputError:
    """A yaml file does not fit the schema, or stands in the wrong place of it for want of a `# @package`."""
    file, key = f"{name}.yaml", str(error.full_key or "")
    group = name.rpartition("/")[0]
    if isinstance(error, ConfigTypeError):
        return InputError(f"{file}: must be a mapping of keys to values")
    if key == group.partition("/")[0] and key not in {f.name for f in fields(Config)}:
        return InputError(
            f"{file}: must begin with the line `# @package {_package(group)}`; it is empty, lacks that"
            " line, or has a byte order mark (BOM) before it"
        )
    inner = _omegaconf_error(error, str(error))
    return InputError(f"{file}: {inner}")


def _package(group: str) -> str:
    """The package that the first line of the shipped files of a group names."""
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        if match := re.match(r"# @package (\S+)", file.read_text(encoding="utf-8")):
            return match[1]
    return "_global_"


def _omegaconf_error(error: Exception, first: str) -> InputError:
    """`first`: the first line of Hydra's message, which may hold more than that of OmegaConf."""
    groups = [*options()]
    stated = re.search(r"^ *full_key: (\S+)$", str(error), re.MULTILINE)
    key = str(getattr(error, "full_key", None) or (stated[1] if stated else ""))
    parent = getattr(error, "parent_node", None)
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and isinstance(parent, DictConfig):
        return unknown_key(key, [*map(str, parent), *([] if "." in key else groups)])
    if match := re.match(r"(?:Could not override|Error resolving interpolation) '(?:\$\{)?([^'}]+)", first):
        return unknown_key(match[1], groups)
    message, *_ = str(error).strip().splitlines() or [first]
    if match := re.search(r"hydra:runtime\.choices\.(\w+)", message):
        return unknown_key(match[1], groups)
    if match := re.match(r"Error merging override (.*)", first):
        key = match[1]
    if "is not Optional" in message:
        message = "must not be null"
    wrong_type = r"Value '.*' (?:of type '\w+' could not be converted to|is not a valid) (\w+)"
    if match := re.match(wrong_type, message):
        message = f"must be {KINDS.get(match[1].lower(), match[1])}"
    if "is not a ListConfig" in message:
        name, _, value = key.partition("=")
        message = f"must be a list: '{name}=[{value}]'"
    return InputError(f"{key}: {message}" if key and key not in message else message)


def unknown_key(key: str, siblings: Sequence[str]) -> InputError:
    """The error for an unknown key; `siblings` are the last parts of the keys that are valid in its place."""
    if names := options().get(key):  # a group, but what it was given is no name
        hint = f"; keys of the stage are stages.{key}.KEY" if key in ("pretrain", "finetune") else ""
        return InputError(f"{key}: needs one name; valid: {', '.join(names)}{hint}")
    group, at, _ = key.partition("@")
    if at and group in options():
        return InputError(f"{key}: is not in the defaults list; write +{key}=NAME")
    prefix, dot, wrong = key.rpartition(".")
    if wrong in options().get(prefix, ()):  # a callback or logger that is not chosen
        return InputError(f"{key}: is not chosen; give {prefix}={wrong} as well")
    elsewhere = [name for name in _keys(Config, "") if name.endswith(f".{wrong}")]
    valid = [name for name in siblings if not name.startswith("_")]
    return InputError(f"{key}: unknown key; {suggest(wrong, valid, prefix + dot, elsewhere)}")


def _keys(schema: Any, prefix: str) -> Iterator[str]:
    for f in fields(schema):
        yield prefix + f.name
        if is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")


def suggest(wrong: str, valid: Sequence[str], prefix: str = "", elsewhere: Sequence[str] = ()) -> str:
    """Suggest the valid name nearest to a misspelt one, and list all if they are few."""
    close = [*(prefix + name for name in difflib.get_close_matches(wrong, valid, n=1)), *elsewhere]
    listed = f"valid: {', '.join(sorted(valid))}" if len(valid) <= 20 else "see python train.py --help"
    if not valid:
        listed = "there are none in its place; +KEY=VALUE adds one that the code takes"
    return f"did you mean {close[0]}? {listed}" if close else listed
