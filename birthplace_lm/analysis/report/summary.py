"""What the runs of a folder have reached, finished or not, as tables."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from birthplace_lm.analysis.report.tables import Table, plain
from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import stage_directory
from birthplace_lm.runs.identity import EXCLUDED_FROM_HASH, TRAINER_EXCLUDED_FROM_HASH
from birthplace_lm.runs.lock import is_locked
from birthplace_lm.runs.metrics import METRICS_FILE, RunMetrics, Score

NAMES = {"labels.attention": "attention", "labels.pretrain": "pretraining", "labels.data": "data"}
WITHOUT_INTEREST = {*EXCLUDED_FROM_HASH, *(f"trainer.{key}" for key in TRAINER_EXCLUDED_FROM_HASH), "seed"}
HINT = "Intervals are 95 % (Wilson), from the number of names alone; seeds differ by more."


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, as far as it can be read.

    Attributes:
        config: dotted key to value.
        state: done, running, stopped, failed, killed, not started or unreadable.
        reason: why it failed or cannot be read, or how far it is.
        majority: the score of always giving the most frequent train answer.
        characters, seconds: over all stages.
        loss: training loss of the last stage, in nats per character.
    """

    path: Path
    config: dict[str, Any]
    state: str
    reason: str = ""
    dev: Score | None = None
    holdout: Score | None = None
    majority: Score | None = None
    parameters: int | None = None
    loss: float | None = None
    characters: int | None = None
    seconds: float | None = None
    stages: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether `reason` says what is wrong, rather than how far it is."""
        return self.state in ("failed", "unreadable")

    def named(self, key: str) -> str:
        value = plain(self.config.get(key, ""))
        return value.rpartition(".")[2] if key.endswith("._target_") else value


def find_runs(root: Path) -> list[Run]:
    """Every run in a folder, or the run that the folder is.

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
        config = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        status = _json(folder / "status.json")
        state = {"preempted": "stopped", None: "not started"}.get(status.get("state"), status.get("state"))
        if state == "running" and not is_locked(folder):
            state = "killed"
        if state != "done":
            reason = status.get("error") if state == "failed" else _progress(folder)
            return Run(folder, config, plain(state), plain(reason or ""))
        metrics = RunMetrics.read(folder / METRICS_FILE)
        return Run(
            folder,
            config,
            "done",
            dev=metrics.dev,
            holdout=metrics.holdout,
            majority=metrics.baseline,
            parameters=metrics.parameters,
            loss=metrics.loss,
            characters=metrics.characters,
            seconds=metrics.training_seconds + metrics.evaluate_seconds,
            stages=tuple(name for name, stage in metrics.stages.items() if stage.steps),
        )
    except Exception as error:  # of any kind: whatever the files may hold
        return Run(folder, {}, "unreadable", plain(f"{type(error).__name__}: {error}")[:80])


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is no mapping")
    return content


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for name, inner in node.items() for k, v in _flat(inner, f"{key}.{name}").items()}
    return {key.lstrip("."): node}


def _progress(folder: Path) -> str:
    """The stage of an unfinished run, and the step it would go on from."""
    for stage in ("finetune", "pretrain"):
        paths = stage_directory(folder, stage).glob("step-*.ckpt")
        steps = [int(path.stem[5:]) for path in paths if path.stem[5:].isdigit()]
        if steps:
            return f"{stage} step {max(steps)}"
    return ""


def varying(runs: Sequence[Run]) -> dict[str, str]:
    """The keys in which runs differ, and a short name of each: attention, pretraining, data, then whatever
    does not follow from these.
    """
    runs = [run for run in runs if run.config]
    named = [tuple(run.named(name) for name in NAMES) for run in runs]
    columns: list[str] = []
    patterns = set()
    keys = {key for run in runs for key in run.config if key.partition(".")[0] not in WITHOUT_INTEREST}
    for key in sorted(keys - WITHOUT_INTEREST - set(NAMES)):
        values = [run.named(key) for run in runs]
        pattern = tuple(values.index(value) for value in values)
        follows = len({*zip(named, values, strict=True)}) == len({*named})
        if not follows and pattern not in patterns:
            patterns.add(pattern)
            columns.append(key)
    return {**NAMES, **{key: _short(key, columns) for key in columns}}


def _short(key: str, keys: Sequence[str]) -> str:
    *_, before, last = ("", *key.removesuffix("._target_").split("."))
    clash = sum(other.endswith(f".{last}") for other in keys) > 1
    return f"{before}.{last}" if clash or last == "enabled" else last


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """What each run is, seeds alike: the names in which runs differ, and what is not as in most of them."""
    found: dict[Run, list[str]] = {run: [] for run in runs}
    for key, name in varying(runs).items():
        (usual, count), *_ = Counter(run.named(key) for run in runs).most_common(1)
        for run, parts in found.items():
            if count < len(runs) and (key in NAMES or run.named(key) != usual):
                parts.append(run.named(key) if key in NAMES else f"{name}={run.named(key)}")
    always = ("labels.attention", "labels.pretrain")
    return {run: ", ".join(parts or [run.named(key) for key in always]) for run, parts in found.items()}


def table_of_runs(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    shown = varying(runs)
    columns: dict[str, Callable[[Run], str]] = {
        **{name: partial(Run.named, key=key) for key, name in shown.items()},
        "seed": lambda run: run.named("seed"),
        "parameters": lambda run: "" if run.parameters is None else f"{run.parameters:,}",
        "dev exact match": lambda run: str(run.dev or ""),
        "held-out exact match": lambda run: str(run.holdout or ""),
        "majority": lambda run: f"{run.majority.exact_match:.1%}" if run.majority else "",
        "loss": lambda run: "" if run.loss is None else f"{run.loss:.3f}",
        "million characters": lambda run: "" if run.characters is None else f"{run.characters / 1e6:.2f}",
        "minutes": lambda run: "" if run.seconds is None else f"{run.seconds / 60:.1f}",
        "state": lambda run: run.state if run.wrong or not run.reason else f"{run.state}, {run.reason}",
        "run directory": lambda run: plain(run.path),
    }
    if not any(run.holdout for run in runs):
        del columns["held-out exact match"]
    return [[*columns], *([cell(run) for cell in columns.values()] for run in runs)]


def groups(runs: Iterable[Run], shown: Mapping[str, str]) -> dict[tuple[str, ...], list[Run]]:
    """The finished runs that differ in nothing but the seed."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.dev is not None:
            found.setdefault(tuple(run.named(key) for key in shown), []).append(run)
    return found


def table_of_seeds(runs: Sequence[Run]) -> Table:
    """A row for all seeds of a setting: mean and spread, and the interval of all answers together."""
    shown = varying(runs)
    head = [
        *shown.values(),
        "seeds",
        "dev exact match",
        "standard deviation",
        "all seeds together",
        "majority",
    ]
    table = [head]
    for key, alike in groups(runs, shown).items():
        scores = [run.dev for run in alike if run.dev is not None]
        shares = [score.exact_match for score in scores]
        together = Score(sum(score.correct for score in scores), sum(score.total for score in scores))
        spread = f"{100 * stdev(shares):.1f} points" if len(shares) > 1 else ""
        majority = f"{alike[0].majority.exact_match:.1%}" if alike[0].majority else ""
        table.append([*key, str(len(shares)), f"{fmean(shares):.1%}", spread, str(together), majority])
    return table


def states(runs: Sequence[Run]) -> str:
    """How many runs are in which state."""
    found = [run.state for run in runs]
    return ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))


def failures(runs: Sequence[Run]) -> list[str]:
    """What is wrong with each run that failed or cannot be read."""
    return [f"{plain(run.path)} {run.state}: {run.reason}" for run in runs if run.wrong]


def as_csv(runs: Sequence[Run]) -> str:
    """A row for each run, numbers in full."""
    shown = varying(runs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    records = [record(run, shown) for run in runs]
    writer.writerow(records[0])
    writer.writerows(found.values() for found in records)
    return out.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """A list with an object for each run."""
    shown = varying(runs)
    return json.dumps([record(run, shown) for run in runs], indent=2) + "\n"


def record(run: Run, shown: Mapping[str, str]) -> dict[str, Any]:
    """What a script would read of a run; None for what it has not reached."""
    return {
        **{name: run.named(key) for key, name in shown.items()},
        "seed": run.config.get("seed"),
        "parameters": run.parameters,
        "correct": run.dev and run.dev.correct,
        "total": run.dev and run.dev.total,
        "exact_match": run.dev and run.dev.exact_match,
        "low": run.dev and run.dev.interval[0],
        "high": run.dev and run.dev.interval[1],
        "holdout_exact_match": run.holdout and run.holdout.exact_match,
        "majority": run.majority and run.majority.exact_match,
        "loss": run.loss,
        "characters": run.characters,
        "seconds": run.seconds,
        "state": run.state,
        "reason": run.reason,
        "run": plain(run.path),
    }
