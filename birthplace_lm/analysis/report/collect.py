"""Collect the runs of a folder, finished or not, from the files in their directories."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from birthplace_lm.analysis.report.tables import plain
from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import stage_directory
from birthplace_lm.runs.lock import is_locked
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, Score


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, as far as it can be read.

    Attributes:
        config: dotted key to value.
        state: done, running, stopped, failed, killed, not started or unreadable.
        reason: the error of a failed or unreadable run; otherwise its progress, or the checkpoint it extends.
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

    def display(self, key: str) -> str:
        """The value of a configuration key as text; of a `_target_` the last part."""
        value = plain(self.config.get(key, ""))
        return value.rpartition(".")[2] if key.endswith("._target_") else value


def find_runs(root: Path) -> list[Run]:
    """Read every run in a folder, or the run whose directory the folder is.

    Raises:
        InputError: there is none.
    """
    folders = [root, *sorted(path for path in root.glob("*") if path.name != "pretrained")]
    runs = [_read(folder) for folder in folders if (folder / "config.yaml").is_file()]
    if not runs:
        raise InputError(f"{root}: no run in it; a run has a config.yaml")
    return runs


def _read(folder: Path) -> Run:
    try:
        config = _flatten(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        status = _read_status(folder / "status.json")
        state = {"preempted": "stopped", None: "not started"}.get(status.get("state"), status.get("state"))
        if state == "running" and not is_locked(folder):
            state = "killed"
        if state != "done":
            reason = status.get("error") if state == "failed" else _progress(folder)
            return Run(folder, config, plain(state), plain(reason or ""))
        metrics = RunMetrics.read(folder / METRICS_FILE)
        extended = f"extends {metrics.extended_from}" if metrics.extended_from else ""
        return Run(folder, config, "done", plain(extended), metrics)
    except Exception as error:  # of any kind: the files may hold anything
        return Run(folder, {}, "unreadable", plain(f"{type(error).__name__}: {error}")[:80])


def _read_status(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is no mapping")
    return content


def _flatten(node: Any, key: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for name, inner in node.items() for k, v in _flatten(inner, f"{key}.{name}").items()}
    return {key.lstrip("."): node}


def _progress(folder: Path) -> str:
    """The stage of an unfinished run, and the step from which it would resume."""
    for stage in ("finetune", "pretrain"):
        paths = stage_directory(folder, stage).glob("step-*.ckpt")
        steps = [int(path.stem[5:]) for path in paths if path.stem[5:].isdigit()]
        if steps:
            return f"{stage} step {max(steps)}"
    return ""
