"""TensorBoard with runs named by what varies, and each shared pretraining listed once."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.summary import hparams

from birthplace_lm.analysis.report.collect import STAGES, Run, checkpoint_name, find_runs
from birthplace_lm.analysis.report.settings import label_parts, seed_varies, shown_settings
from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import stage_directory

MAX_NAME = 200  # bytes of a folder's name; file systems have 255
REFRESH_SECONDS = 15
COLUMNS = "~ columns of HParams"  # a run without curves, at the end of the list


def serve(root: Path, options: Sequence[str]) -> int:
    """Run TensorBoard on the runs of a folder until it ends or a signal arrives; new runs are added.

    It reads a temporary folder of links, see `update_links`.

    Args:
        root: the folder, or one run directory.
        options: passed on to TensorBoard.

    Returns:
        TensorBoard's exit code; 0 after Ctrl-C.

    Raises:
        InputError: the folder has no run.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up below
    with TemporaryDirectory(prefix="birthplace-lm-tensorboard-") as folder:
        update_view(find_runs(root), Path(folder))
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder, *options])
        try:
            while server.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    server.wait(REFRESH_SECONDS)
                with suppress(InputError):  # the runs were moved or deleted
                    update_view(find_runs(root), Path(folder))
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait()
    return server.returncode


def update_view(runs: Sequence[Run], folder: Path) -> None:
    """Update the links and the columns of the HParams tab: what varies, and the score.

    Without a description of the experiment TensorBoard shows all settings, and the results behind them.

    Raises:
        OSError: the folder is not writable.
    """
    update_links(runs, folder)
    columns = hparams_columns(runs)
    place = folder / COLUMNS
    place.mkdir(exist_ok=True)
    file = place / "columns.txt"
    if not file.is_file() or file.read_text() != repr(columns):
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        experiment, _, _ = hparams(columns, {"final/dev_exact_match": 0.0, "final/loss": 0.0})
        writer = EventFileWriter(str(place))
        writer.add_event(Event(summary=experiment))
        writer.close()
        file.write_text(repr(columns))


def hparams_columns(runs: Sequence[Run]) -> dict[str, bool | float | str]:
    """The settings that differ by their names among the hyperparameters of the runs, each with one value."""
    keys = [key for setting in shown_settings(runs) for key in setting.keys]
    keys += ["seed"] if seed_varies(runs) else []
    columns: dict[str, bool | float | str] = {}
    for key in keys:
        values = [value for run in runs if isinstance(value := run.config.get(key), bool | int | float | str)]
        if values:
            name = key.removeprefix("stages.").removeprefix("labels.")
            columns[name] = values[0] if len({*map(type, values)}) == 1 else str(values[0])
    return columns


def update_links(runs: Sequence[Run], folder: Path) -> None:
    """Let a folder have one link `LABEL/STAGE` for each stage of the runs that has event files, and no other.

    Raises:
        OSError: the folder is not writable.
    """
    wanted = stage_links(runs)
    for link in folder.glob("*/*"):
        if link.parent.name != COLUMNS and wanted.get(str(link.relative_to(folder))) != link.resolve():
            link.unlink()
    for name, target in wanted.items():
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
    for label in filter(Path.is_dir, folder.iterdir()):
        if not any(label.iterdir()):
            label.rmdir()


def stage_links(runs: Sequence[Run]) -> dict[str, Path]:
    """`LABEL/STAGE` and the folder of each stage; a stage that runs share has what their labels share."""
    parts = label_parts(runs)
    if seed_varies(runs):
        parts = {run: [*parts[run], f"seed {run.display('seed')}"] for run in runs}
    users: dict[tuple[str, Path], list[Run]] = {}
    for run in runs:
        for stage in STAGES:
            target = stage_directory(run.path, stage).resolve()
            if any(target.glob("events.out.tfevents.*")):
                users.setdefault((stage, target), []).append(run)
    links: dict[str, Path] = {}
    for (stage, target), sharing in users.items():
        first, *others = (parts[run] for run in sharing)
        shared = [part for part in first if all(part in other for other in others)]
        label = ", ".join(shared or ["all"]).replace("/", " ").encode()[:MAX_NAME].decode(errors="ignore")
        if f"{label}/{stage}" in links:  # of two runs with one label, the other is named by its hash too
            label += f", {checkpoint_name(str(target)).partition('/')[0][-20:]}"
        links[f"{label}/{stage}"] = target
    return links
