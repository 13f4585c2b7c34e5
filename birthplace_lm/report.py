"""What the runs of a folder have reached, as a table and as a picture of their learning curves."""

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from birthplace_lm.error import InputError

Curve = list[tuple[float, float]]  # characters seen, exact match on dev


def finished_runs(root: Path) -> dict[Path, dict[str, Any]]:
    """The metrics of every finished run in a folder, or of the run that the folder is.

    Raises:
        InputError: there is none, or its metrics.json is not what we write.
    """
    files = sorted({*root.glob("metrics.json"), *root.glob("*/metrics.json")})
    if not files:
        raise InputError(f"{root}: no finished run in it; a finished run has a metrics.json")
    return {file.parent: _read(file) for file in files}


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not _row(found).isprintable():
            raise ValueError("it has characters that cannot be shown")
    except Exception as error:  # of any kind: whatever a file may hold
        raise InputError(
            f"{file}: not the metrics of a run: {type(error).__name__}: {str(error)[:80]}"
        ) from error
    return found


def markdown(runs: dict[Path, dict[str, Any]]) -> str:
    """One row per run."""
    lines = [
        "| attention | pretraining | data | seed | parameters | dev exact match | majority | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, runs.values())])


def _row(found: dict[str, Any]) -> str:
    dev, baseline = found["dev"], found["baseline"]
    seconds = sum(stage["seconds"] for stage in found["stages"].values())
    return (
        f"| {found['attention']} | {found['pretrain']} | {found['data']} | {found['seed']}"
        f" | {found['parameters']:,} | {dev['correct']}/{dev['total']} = {dev['exact_match']:.1%}"
        f" | {baseline['exact_match']:.1%} | {seconds / 60:.1f} |"
    )


def learning_curve(run: Path, spent: dict[str, dict[str, Any]]) -> Curve:
    """Exact match on dev against the characters read by then, over both stages.

    Args:
        spent: `stages` of the run's metrics; the characters of a stage are spread evenly over its steps.
    """
    curve: Curve = []
    before = 0.0
    for stage in ("pretrain", "finetune"):
        if not spent[stage]["steps"]:
            continue
        events = EventAccumulator(str(run / stage))
        events.Reload()
        each = spent[stage]["characters"] / spent[stage]["steps"]
        if f"{stage}/exact_match" in events.Tags()["scalars"]:
            found = events.Scalars(f"{stage}/exact_match")
            curve += [(before + each * (event.step + 1), event.value) for event in found]
        before += spent[stage]["characters"]
    return curve


def draw(runs: dict[Path, dict[str, Any]], out: Path) -> None:
    """Write the learning curves of the runs against their majority baseline, as an SVG or PNG file.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install 'birthplace-lm[plot]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colors: dict[str, Any] = {}  # seeds have one
    for run, found in runs.items():
        curve = learning_curve(run, found["stages"])
        label = f"{found['attention']}, pretrain={found['pretrain']}"
        (line,) = axes.plot(
            [x / 1e6 for x, _ in curve],
            [y for _, y in curve],
            marker=".",
            color=colors.get(label),
            label=None if label in colors else label,
        )
        colors[label] = line.get_color()
    majority = max(found["baseline"]["exact_match"] for found in runs.values())
    axes.axhline(majority, color="gray", linestyle="--", linewidth=1, label="majority answer")
    axes.set(xlabel="million characters read", ylabel="exact match on dev", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
