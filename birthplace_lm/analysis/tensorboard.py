"""TensorBoard with runs named by what varies, and each shared pretraining listed once."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from birthplace_lm.analysis.report.collect import STAGES, Run, checkpoint_name, find_runs
from birthplace_lm.analysis.report.settings import label_parts, seed_varies
from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import stage_directory

MAX_NAME = 200  # characters of a folder's name; file systems have 255 bytes
REFRESH_SECONDS = 15


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
        update_links(find_runs(root), Path(folder))
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder, *options])
        try:
            while server.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    server.wait(REFRESH_SECONDS)
                with suppress(InputError):  # the runs were moved or deleted
                    update_links(find_runs(root), Path(folder))
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait()
    return server.returncode


def update_links(runs: Sequence[Run], folder: Path) -> None:
    """Let a folder have one link `LABEL/STAGE` for each stage of the runs that has event files, and no other.

    Raises:
        OSError: the folder is not writable.
    """
    wanted = stage_links(runs)
    for link in folder.glob("*/*"):
        if wanted.get(str(link.relative_to(folder))) != link.resolve():
            link.unlink()
    for name, target in wanted.items():
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
    for label in folder.iterdir():
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
        label = ", ".join(shared or ["all"]).replace("/", " ")[:MAX_NAME]
        if f"{label}/{stage}" in links:  # of two runs with one label, the other is named by its hash too
            label += f", {checkpoint_name(str(target)).partition('/')[0][-20:]}"
        links[f"{label}/{stage}"] = target
    return links
