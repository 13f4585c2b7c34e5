"""The learning curves of runs, read from their TensorBoard event files."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.analysis.report.settings import labels
from birthplace_lm.analysis.report.summary import csv_of
from birthplace_lm.analysis.report.tables import plain
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs.atomic_files import atomic_write_text
from birthplace_lm.runs.directory import stage_directory

CURVES = {
    "exact_match": "exact match of validations",  # on dev, or on the held-out rows
    "loss": "training loss, nats per character",
    "val_loss": "validation loss, nats per character",
    "learning_rate": "learning rate",
}

Curve = list[tuple[float, float]]  # characters read, value


def learning_curve(run: Run, name: str = "exact_match") -> Curve:
    """One of CURVES over all stages of the run, against the characters read."""
    return [point for stage, events in _stages(run) for point in _points(stage, events, name, "characters")]


def characters_until_half(run: Run) -> int | None:
    """The characters read before the first validation with half of the answers right; None if none has."""
    return next((int(read) for read, share in learning_curve(run) if share >= 0.5), None)


def write_curves(runs: Sequence[Run], out: Path) -> None:
    """Write every point of the learning curves of the finished runs as CSV.

    Raises:
        InputError: no run is finished.
        CheckpointError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = []
    for run, label in labels([run for run in runs if run.dev]).items():
        for stage, events in _stages(run):
            for name in CURVES:
                over = [_points(stage, events, name, axis) for axis in ("characters", "seconds")]
                rows += [
                    {
                        "run": plain(run.path),
                        "label": label,
                        "seed": run.display("seed"),
                        "stage": stage,
                        "curve": name,
                        "characters": characters,
                        "seconds": seconds,
                        "value": value,
                    }
                    for (characters, value), (seconds, _) in zip(*over, strict=False)
                ]
    if not rows:
        raise InputError("no curves: no run is finished, or their event files are gone")
    try:
        atomic_write_text(out, csv_of(rows))
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}") from error


@lru_cache(maxsize=512)  # a page reads the curves of a run several times
def _stages(run: Run) -> list[tuple[str, EventAccumulator]]:
    """The stages that took a step, with their events."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # otherwise a line for every resume
    stages = []
    for stage, result in run.metrics.stages.items() if run.metrics else ():
        folder = stage_directory(run.path, stage)
        if result.steps and folder.is_dir():  # a shared pretraining may have been deleted, or not copied
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
            events.Reload()
            stages.append((stage, events))
    return stages


def _points(stage: str, events: EventAccumulator, name: str, axis: str) -> Curve:
    """A curve of one stage over "characters" or "seconds"."""

    def scalars(tag: str) -> list[Any]:
        return events.Scalars(tag) if tag in events.Tags()["scalars"] else []

    if name == "learning_rate":  # it is written by step, always together with the loss
        losses, rates = scalars(f"by_{axis}/loss"), scalars(f"{stage}/learning_rate")
        return [(loss.step, rate.value) for loss, rate in zip(losses, rates, strict=False)]
    return [(event.step, event.value) for event in scalars(f"by_{axis}/{name}")]
