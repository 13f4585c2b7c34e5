"""A new run beside earlier ones: what differs from the nearest, and how to continue that one instead."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.config.compose import resolve_and_validate
from birthplace_lm.config.overrides import as_typed
from birthplace_lm.errors import BirthplaceError
from birthplace_lm.runs.directory import RunDirectory
from birthplace_lm.runs.identity import (
    CHECKPOINT_KEYS,
    FILE_KEYS,
    flatten,
    hashed_config,
    run_directory,
)
from birthplace_lm.runs.lock import is_locked

MAX_RUNS = 20  # that are read, the newest first: a few milliseconds each
MAX_DIFFERENCES = 3  # with more, it is another experiment
SHOWN = 20  # characters of a value
HASHED_KEYS = {*CHECKPOINT_KEYS, *(f"data.{key}" for key in FILE_KEYS)}  # whose values are hashes of files

YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where libyaml is installed

Differences = dict[str, tuple[Any, Any]]  # key -> value there, value here


def nearest_run(config: DictConfig) -> str | None:
    """One line about the run of the same labels and seed that differs least; None if none is near.

    Overrides to continue it are suggested only after a check that they lead to its run directory.

    Args:
        config: of a run that has not started, with `inputs`.
    """
    if config.run_dir is not None or config.extend_from is not None:
        return None
    labels = config.labels
    pattern = f"{labels.attention}-{labels.pretrain}-{labels.data}-s{config.seed}-*/config.yaml"
    files = Path(config.runs_root).expanduser().glob(pattern)
    ours = flatten(hashed_config(config))
    nearest: tuple[int, Path, Differences] | None = None
    newest = sorted(files, key=_modified, reverse=True)[:MAX_RUNS]
    for file in newest:
        with suppress(Exception):  # written by another version, or damaged: no run to continue
            saved = yaml.load(file.read_text(encoding="utf-8"), YAML_LOADER)
            theirs = flatten(hashed_config(OmegaConf.create(saved)))
            differing = {key: (theirs.get(key), ours.get(key)) for key in sorted({*theirs, *ours})}
            differing = {key: pair for key, pair in differing.items() if pair[0] != pair[1]}
            if differing and (nearest is None or len(differing) < nearest[0]):
                nearest = len(differing), file.parent, differing
    if nearest is None or nearest[0] > MAX_DIFFERENCES:
        return None
    _, path, differing = nearest
    values = [_shown(key, theirs, ours) for key, (theirs, ours) in differing.items()]
    return f"a new run; {path} differs in {', '.join(values)}{_advice(config, path, differing)}"


def _modified(path: Path) -> float:
    """When a file was written; 0 if another process has removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _advice(config: DictConfig, path: Path, differing: Differences) -> str:
    if is_locked(path):
        return "; it is running"
    if RunDirectory(path, config).finished:
        *_, stage = (name for name, stage in config.stages.items() if stage.enabled)
        theirs, ours = differing.get(f"stages.{stage}.max_epochs", (0, 0))
        extends = len(differing) == 1 and theirs < ours and config.trainer.max_steps == -1
        if not extends:
            return "; it is done"
        return f"; it is done; to train that one longer instead, add extend_from={path}"
    overrides = [f"{key}={as_typed(theirs)}" for key, (theirs, _) in differing.items()]
    with suppress(BirthplaceError, HydraException):
        if run_directory(_overridden(config, overrides)).resolve() == path.resolve():
            return f"; to continue that one instead, give {' '.join(overrides)}"
    return "; it is not finished"


def _shown(key: str, theirs: Any, ours: Any) -> str:
    """A key with both values, each cut to where they differ."""
    if key in HASHED_KEYS and theirs and ours:
        return f"the content of {key}"
    if key == "trainer.strategy":  # those that do not shard the model count as one
        theirs, ours = theirs or "another", ours or "another"
    texts = as_typed(theirs), as_typed(ours)
    pairs = enumerate(zip(*texts, strict=False))
    common_length = next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))
    start = (
        texts[0].rfind(".", 0, common_length) + 1
        if key.endswith("_target_")
        else max(0, common_length - SHOWN // 2)
    )
    there, here = (("..." if start else "") + text[start : start + SHOWN] for text in texts)
    return f"{key} ({there} there, {here} here)"


def _overridden(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration that these further overrides would make.

    Raises:
        InputError, HydraException: they are not valid.
    """
    plain: Any = OmegaConf.to_container(config)
    changed = OmegaConf.create(plain)
    for override in OverridesParser.create().parse_overrides(overrides):
        OmegaConf.update(changed, override.key_or_group, override.value())
    return resolve_and_validate(changed)
