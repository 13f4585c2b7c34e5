"""`train.py` in processes that start in a moment, to be killed by the hundred, and what it leaves."""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from birthplace_lm.runs import checkpoint

TRAIN = Path(__file__).parents[1] / "train.py"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_context = multiprocessing.get_context("forkserver")
# A plugin of Hydra, hydra_plugins/search.py: a sweeper that suggests the same job twice, as Optuna may.
SEARCH = """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Search(Sweeper):
    def __init__(self, direction):
        pass

    def setup(self, *, hydra_context, task_function, config):
        make = Plugins.instance().instantiate_launcher
        self.launcher = make(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments):
        returns = self.launcher.launch([arguments, arguments], initial_job_idx=0)
        print("results", *(float(job.return_value) for job in returns))

@dataclass
class Settings:
    _target_: str = "hydra_plugins.search.Search"
    direction: str = "minimize"

ConfigStore.instance().store(group="hydra/sweeper", name="search", node=Settings)
"""


class Program:
    """`python train.py ARGUMENTS`, leading a session of its own, forked from a server that has torch already.

    Attributes:
        stdout, stderr: files in `folder`, written anew by each.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
        directory: Path | None = None,  # where the command is typed
    ) -> None:
        _start_server()
        folder.mkdir(parents=True, exist_ok=True)
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        for file in (self.stdout, self.stderr):
            file.write_bytes(b"")
        self._process = _context.Process(
            target=_train,
            args=(list(arguments), str(self.stdout), str(self.stderr), dict(environment), directory),
        )
        self._process.start()
        self.pid: int = self._process.pid or 0

    def heeds(self, number: int) -> bool:
        """Whether it handles this signal by now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
        return False

    def send(self, number: int, to_all: bool = False) -> None:
        """Send a signal to it, or as a terminal does to all of its processes."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            (os.killpg if to_all else os.kill)(self.pid, number)

    def running(self, seconds: float) -> bool:
        """Whether it is still running after that time."""
        self._process.join(seconds)
        return self._process.exitcode is None

    def wait(self, seconds: float = 120) -> int:
        """Its exit code as a shell shows it."""
        assert not self.running(seconds), f"hangs: {self.stderr.read_text()}"
        code = self._process.exitcode
        assert code is not None
        return code if code >= 0 else 128 - code


@functools.cache
def _start_server() -> None:
    _context.set_forkserver_preload(
        ["__main__", "pytest", "birthplace_lm.training.pipeline", "birthplace_lm.cli.sweep"]
    )
    forkserver.ensure_running()


def _train(
    arguments: list[str], stdout: str, stderr: str, environment: dict[str, str], directory: Path | None
) -> None:
    os.setsid()
    os.environ.update(environment)
    if directory is not None:
        os.chdir(directory)
    if "PYTHONPATH" in environment:  # the server has read its own already
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    multiprocessing.set_start_method("fork", force=True)  # of data workers; else they would inherit ours
    for number in SIGNALS:  # whoever runs the tests may ignore some
        signal.signal(number, signal.SIG_DFL)
    for file, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), file)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run leaves, but for times: metrics, answers, and of each stage weights and curves."""
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    result: dict[str, Any] = {"metrics": _without_times(json.loads((run / "metrics.json").read_text()))}
    result |= {path.name: path.read_text() for path in (run / "predictions").iterdir()}
    for stage in ("pretrain", "finetune"):
        if (run / stage).exists():
            result[f"{stage} result"] = _without_times(json.loads((run / stage / "result.json").read_text()))
            result[f"{stage} weights"] = _digest(checkpoint.load(checkpoint.list_checkpoints(run / stage)[0]))
            result |= {f"{stage} {tag}": points for tag, points in curves(run / stage).items()}
    return result


def curves(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows: (step, value) by tag; of speeds the steps alone."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})  # as TensorBoard itself reads them
    events.Reload()
    points: dict[str, list[tuple[int, Any]]] = {}
    for tag in events.Tags()["tensors"]:
        timed = tag.endswith(("characters_per_second", "final/seconds"))
        points[tag] = [
            (event.step, None if timed else make_ndarray(event.tensor_proto).tolist())
            for event in events.Tensors(tag)
        ]
        if "by_seconds/" in tag:
            assert points[tag] == sorted(points[tag], key=itemgetter(0))
            points[tag] = [(0, value) for _, value in points[tag]]
    return points


def steps_taken(folder: Path, stage: str) -> int:
    """As far as the curves on disk tell."""
    return max((step + 1 for step, _ in curves(folder).get(f"{stage}/loss", [])), default=0)


def saved_step(folder: Path) -> int:
    """Of the newest whole checkpoint; 0 if there is none."""
    newest = checkpoint.latest_intact(folder)
    return 0 if newest is None else checkpoint.parse_step(newest) or 0


def unfinished(root: Path, run: Path) -> dict[str, Path]:
    """The folders of the stages that have begun and not ended."""
    folders = [("pretrain", path) for path in root.glob("pretrained/*")] + [("finetune", run / "finetune")]
    return {
        stage: folder
        for stage, folder in folders
        if folder.is_dir() and not (folder / "result.json").exists()
    }


def leftovers(root: Path) -> list[Path]:
    """Half-written files, and hashes of nothing."""
    return [
        path
        for path in root.rglob("*")
        if path.suffix == ".tmp" or (path.suffix == ".sha256" and not path.with_suffix("").exists())
    ]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key != "seconds"}
    return value


def _digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(state["state_dict"].items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()
