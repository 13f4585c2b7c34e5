"""One-line messages for errors of Hydra, OmegaConf and YAML, with the closest valid names."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from birthplace_lm.config.groups import options
from birthplace_lm.config.schema import Config
from birthplace_lm.errors import InputError


def to_input_error(error: Exception) -> InputError:
    """Translate an error of Hydra, OmegaConf or YAML into one line with the closest valid names."""
    groups = [*options()]
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
        return unknown_key(key, [*map(str, parent), *([] if "." in key else groups)])
    if match := re.match(r"(?:Could not override|Error resolving interpolation) '(?:\$\{)?([^'}]+)", first):
        return unknown_key(match[1], groups)
    message, *_ = str(source).strip().splitlines() or [first]
    if match := re.search(r"hydra:runtime\.choices\.(\w+)", message):
        return unknown_key(match[1], groups)
    if match := re.match(r"Error merging override (.*)", first):
        key = match[1]
    if "is not Optional" in message:
        message = "must not be null"
    return InputError(f"{key}: {message}" if key and key not in message else message)


def unknown_key(key: str, siblings: Sequence[str]) -> InputError:
    """The error for an unknown key; `siblings` are the last parts of the keys that are valid in its place."""
    if names := options().get(key):  # a group, but what it was given is no name
        return InputError(f"{key}: needs one name; valid: {', '.join(names)}")
    prefix, dot, wrong = key.rpartition(".")
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
    return f"did you mean {close[0]}? {listed}" if close else listed
