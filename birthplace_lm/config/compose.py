"""Compose a configuration with Hydra, resolve and validate it; read that of a saved run.

Imports neither torch nor lightning, so that a mistake shows at once.
"""

import json
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from birthplace_lm.config.allowlist import check_allowlist, check_plugins
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.config.messages import to_input_error
from birthplace_lm.config.overrides import checked_overrides
from birthplace_lm.config.schema import BATCH_LIMITS, PRECISION_ALIASES, PRECISIONS, Config
from birthplace_lm.config.validation import check_combinations, check_literals, check_names, check_values
from birthplace_lm.errors import InputError

RUN_CONFIG = "config.yaml"
EXPORTED_CONFIG = "config.json"
_one_hydra = threading.RLock()  # it keeps its state in the process


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose and validate the configuration that `python train.py OVERRIDES` would run.

    Raises:
        InputError: the overrides do not make a valid configuration.
    """
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise InputError(f"overrides={overrides!r}: must be a list of texts: ['KEY=VALUE']")
    with _hydra():
        try:
            config = hydra.compose("train", checked_overrides(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            check_no_sweep(config.hydra)
        except InputError:
            raise
        except Exception as error:  # of any kind: a TypeError at attention=[{a:1}], an OSError at a long name
            raise to_input_error(error) from error
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        return resolve_and_validate(config)


def check_no_sweep(settings: Any) -> None:
    """Refuse a recipe that lists values for a sweep where one run is composed: Hydra would ignore them.

    Args:
        settings: Hydra's own configuration.

    Raises:
        InputError: a key that the recipe sweeps over has no value of its own.
    """
    overrides: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)  # they may interpolate
    overridden = {re.split("[=@]", override)[0].lstrip("+") for override in overrides}
    keys = [key for key in settings.sweeper.get("params") or {} if key not in overridden]
    if keys:
        values = " ".join(f"{key}=VALUE" for key in keys)
        raise InputError(f"this recipe sweeps over {', '.join(keys)}: add -m, or give {values} for one run")


@contextmanager
def _hydra() -> Iterator[None]:
    """Initialise Hydra with our `conf/`, one thread at a time; then restore the caller's Hydra state."""
    with _one_hydra:
        hydra_before, config_before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        version_before = VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra_before, config_before
            VersionBase.instance().version_base = version_before


def resolve_and_validate(config: DictConfig, plugins: Collection[str] | None = None) -> DictConfig:
    """Resolve and check a configuration, composed or read from a file; the result is read-only.

    precision=auto stays: `birthplace_lm.runs.auto_precision` replaces it, once the inputs are known.

    Args:
        plugins: packages whose classes it may name; None for those of its own key `plugins`.

    Raises:
        InputError: a value is missing, unknown, of another type or out of range, values contradict each
            other, or a `_target_` is not on the allow-list.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), config)  # type: ignore[assignment]
        OmegaConf.set_readonly(config, False)  # of the copy: a configuration may be checked twice
        for missing in sorted(OmegaConf.missing_keys(config)):
            raise InputError(f"{missing} is missing; give {missing}=VALUE")
        precision = PRECISION_ALIASES.get(config.trainer.precision, config.trainer.precision)
        config.trainer.precision = precision
        if config.precision != "auto" and precision in PRECISIONS:  # a run keeps both keys
            config.precision = precision
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError, OverflowError, RecursionError) as error:
        raise to_input_error(error) from error
    for key in BATCH_LIMITS:  # as Lightning reads them: 3.0 and 1e1 are numbers of batches
        limit = values["trainer"][key]
        if isinstance(limit, float) and limit > 1 and limit.is_integer():
            values["trainer"][key] = int(limit)
    check_literals(values)
    config = DictConfig(values)
    check_values(Config, config)
    check_names(config)
    check_plugins(config.plugins if plugins is None else plugins)
    check_allowlist(config, "", config.plugins if plugins is None else plugins)
    check_combinations(config)
    OmegaConf.set_readonly(config, True)
    return config


def to_saved(config: DictConfig) -> str:
    """The text of a config.yaml: without `plugins`, which whoever reads it must name."""
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.to_yaml(OmegaConf.create({**plain, "plugins": []}))


def to_exported(config: DictConfig) -> str:
    """The text of a config.json: as `to_saved`."""
    plain: Any = OmegaConf.to_container(config)
    return json.dumps({**plain, "plugins": []}, ensure_ascii=False, indent=2) + "\n"


def config_file(folder: Path) -> Path:
    """The file with the configuration of a run directory (config.yaml) or of an export (config.json)."""
    run, export = folder / RUN_CONFIG, folder / EXPORTED_CONFIG
    return export if export.is_file() and not run.is_file() else run


def load_config(folder: Path, plugins: Collection[str] = ()) -> DictConfig:
    """The resolved configuration of a run directory or an export; see `load_saved`."""
    return load_saved(config_file(folder), plugins)


def load_saved(file: Path, plugins: Collection[str] = ()) -> DictConfig:
    """The resolved configuration in a file that a run or an export has written.

    Args:
        plugins: packages whose classes it may name; it cannot allow any itself.

    Raises:
        InputError: there is no such file, or it is not one that a run has written.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = f"{RUN_CONFIG} or {EXPORTED_CONFIG}"
        raise InputError(f"{file.parent}: not a run directory or an export: it has no {names}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    return parse_saved(text, file, plugins)


def parse_saved(text: str, file: Path, plugins: Collection[str] = ()) -> DictConfig:
    """The resolved configuration in the text of a config.yaml, or of a config.json, which is YAML as well.

    Interpolations are refused.

    Raises:
        InputError: a run has not written this; the message names `file`.
    """
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("has YAML aliases, which are refused: a few lines could expand to any size")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig) or not config:
            raise ValueError("is empty, or no mapping; restore it, or delete the folder and train again")
        if "${" in str(OmegaConf.to_container(config)):  # resolving would reveal environment variables
            raise ValueError("has interpolations; the configuration of a run has none")
        return resolve_and_validate(config, plugins)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{file}: {where}{error.problem}") from error
    except Exception as error:  # of any kind: YAML, OmegaConf and Python each have their own
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{file}: {reason}") from error
