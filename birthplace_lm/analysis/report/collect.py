"""Collect the runs of a folder, finished or not, from the files in their directories."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf

from birthplace_lm.analysis.report.tables import plain
from birthplace_lm.config.schema import Config
from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import stage_directory
from birthplace_lm.runs.identity import CHECKPOINT_KEYS, flatten
from birthplace_lm.runs.lock import is_locked
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, Score

PRETRAINING = "labels.pretrain"
STAGES = ("pretrain", "finetune")


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, as far as it can be read.

    Attributes:
        config: dotted key to value.
        state: done, running, stopped, failed, killed, not started or unreadable.
        reason: the error of a failed or unreadable run; of an unfinished one its progress.
        metrics: None unless the run is done.
    """

    path: Path
    config: dict[str, Any]
    state: str
    reason: str = ""
    metrics: RunMetrics | None = None

    @property
    def dev(self) -> Score | None:
        """The exact match on dev of a finished run."""
        return self.metrics.dev if self.metrics else None

    @property
    def has_error(self) -> bool:
        """Whether `reason` is an error."""
        return self.state in ("failed", "unreadable")

    @property
    def name(self) -> str:
        """The hash at the end of the directory's name, which is enough to find it; or the whole name."""
        return short_name(self.path.resolve().name)

    def value(self, key: str) -> str:
        """The value of a configuration key as text; see `value_in`."""
        return value_in(self.config, key)

    def display(self, key: str, parts: int = 1) -> str:
        """The same, where a checkpoint is named by its run, a path by its end, a hash by its beginning."""
        value = self.value(key)
        if key.startswith("inputs."):
            return value[:8]
        if key in CHECKPOINT_KEYS or (key == PRETRAINING and self.config.get("init_from")):
            word, _, path = value.partition(" ") if key == PRETRAINING else ("", "", value)
            return f"{word} {checkpoint_name(path)}".strip()
        return str(Path(*Path(value).parts[-parts:])) if "/" in value else value


def value_in(config: Mapping[str, Any], key: str) -> str:
    """The value of a key in a flat configuration as text; empty for a key of a disabled stage.

    A `_target_` in this package is shortened to its last part, because modules are renamed between versions.
    The pretraining label of a run that starts from a checkpoint is "init_from PATH".
    """
    if key == PRETRAINING and config.get("init_from"):
        return plain(f"init_from {config['init_from']}")
    stage = ".".join(key.split(".")[:2])
    if (
        stage.startswith("stages.")
        and config.get(f"{stage}.enabled") is False
        and not key.endswith(".enabled")
    ):
        return ""
    value = config.get(key, "")
    text = "null" if value is None else plain(value)
    is_ours = key.endswith("._target_") and text.startswith("birthplace_lm.")
    return text.rpartition(".")[2] if is_ours else text


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration by dotted keys, with a key also for what it does without.

    Otherwise a run without any callback, or with one optimizer for all stages, would have no key that differs
    from those of a run with some.
    """
    flat = flatten(config)
    flat["callbacks"] = ", ".join(sorted(config.get("callbacks") or {})) or "none"
    for stage in STAGES:
        key = f"stages.{stage}.optimizer"
        if flat.get(key, "") is None:
            flat[f"{key}._target_"] = flat.pop(key)
    return flat


def checkpoint_name(path: str) -> str:
    """The run, stage and step of a checkpoint, as far as its path names them: `67ecb466/finetune@850`."""
    if not path or path == "null":
        return ""
    *parents, last = Path(path).parts
    step = f"@{int(last[5:-5])}" if re.fullmatch(r"step-\d+\.ckpt", last) else ""
    folders = parents if step else [*parents, last]
    stage = folders.pop() if len(folders) > 1 and folders[-1] in STAGES else ""
    name = short_name(folders[-1]) if folders else ""
    return f"{name}{'/' if stage else ''}{stage}{step}"


def short_name(folder: str) -> str:
    """The hash at the end of the name of a run directory; of another folder the whole name."""
    match = re.search(r"-([0-9a-f]{8})$", folder)
    return match[1] if match else plain(folder)


def find_runs(root: Path) -> list[Run]:
    """Read every run in a folder, or the run whose directory the folder is; the best on dev comes first.

    Raises:
        InputError: there is none.
    """
    folders = [root, *sorted(path for path in root.glob("*") if path.name != "pretrained")]
    runs = [_read(folder) for folder in folders if (folder / "config.yaml").is_file()]
    if not runs:
        raise InputError(f"{root}: no run in it; a run has a config.yaml")
    return sorted(runs, key=_rank)


def _rank(run: "Run") -> tuple[float, float]:
    """The best on dev first, of equal ones the one with the lower loss."""
    loss = run.metrics.loss if run.metrics else None
    return -run.dev.exact_match if run.dev else 1.0, math.inf if loss is None else loss


def _read(folder: Path) -> Run:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("config.yaml: is empty, or no mapping")
        config = flat_settings(content)
        for key, value in _defaults().items():  # an older run lacks the keys that were added later
            if key.partition(".")[0] in content:
                config.setdefault(key, value)
        status = _read_status(folder / "status.json")
        state = {"preempted": "stopped", None: "not started"}.get(status.get("state"), status.get("state"))
        if state == "running" and not is_locked(folder):
            state = "killed"
        if state != "done":
            reason = status.get("error") if state == "failed" else _progress(folder)
            return Run(folder, config, plain(state), plain(reason or ""))
        metrics = RunMetrics.read(folder / METRICS_FILE)
        return Run(folder, config, "done", metrics=metrics)
    except Exception as error:  # of any kind: the files may hold anything
        return Run(folder, {}, "unreadable", plain(str(error).replace(f"{folder}/", ""))[:80])


@cache
def _defaults() -> dict[str, Any]:
    """The single values, such as numbers and words, that have a default in the schema; none of a stage."""
    schema: Any = OmegaConf.to_container(OmegaConf.structured(Config))
    flat = flatten({key: value for key, value in schema.items() if key != "stages"})
    return {
        key: value for key, value in flat.items() if isinstance(value, int | float | str) and value != MISSING
    }


def _read_status(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is no mapping")
    return content


def _progress(folder: Path) -> str:
    """The stage of an unfinished run, and the step from which it would resume."""
    for stage in reversed(STAGES):
        paths = stage_directory(folder, stage).glob("step-*.ckpt")
        steps = [int(path.stem[5:]) for path in paths if path.stem[5:].isdigit()]
        if steps:
            return f"{stage} step {max(steps)}"
    return ""
