"""The jobs of a sweep: validate all before the first starts, pass on signals, print the table of results."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from birthplace_lm.cli import session
from birthplace_lm.cli.search import check_maximises, searches
from birthplace_lm.cli.session import JOB_FAILURES
from birthplace_lm.config.compose import resolve_and_validate
from birthplace_lm.config.messages import to_input_error
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError, InternalError
from birthplace_lm.runs import signals
from birthplace_lm.runs.directory import RunDirectory, read_status
from birthplace_lm.runs.find import find_run
from birthplace_lm.runs.lock import is_locked
from birthplace_lm.runs.metrics import RunMetrics
from birthplace_lm.training.distributed import cluster

if TYPE_CHECKING:
    from birthplace_lm.analysis.report.tables import Table  # imports rich, which takes a moment


@dataclass
class Job:
    """One job: its overrides, its run directory, and the directory's state before the sweep."""

    overrides: list[str]
    directory: RunDirectory
    finished_before: bool
    status_mtime_before: float | None  # when its status.json was written
    failure: BirthplaceError | None = None

    @property
    def started_by_this_sweep(self) -> bool:
        """Whether this sweep has started it, in any process."""
        return self.directory.status_mtime != self.status_mtime_before


class SweepRejected(BaseException):
    """A job is invalid; none starts. A BaseException: Hydra turns a callback's Exception into a warning."""

    def __init__(self, error: BirthplaceError, show_traceback: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.show_traceback = show_traceback


class SweepStopped(BaseException):
    """A signal stopped a job of this process. Not an Exception: Hydra's launcher would start the next job."""


class ValidateSweep(Callback):
    """Compose and validate every job of a sweep over lists, data included, before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if (placement := cluster.current()) is not None:
            error = InputError(
                f"--multirun: not below {placement.launcher}; leave it out and give trainer=ddp"
                " trainer.devices=N, or hydra/launcher=submitit_slurm, which start the processes of each job"
            )
            raise SweepRejected(error)
        for group in ("sweeper", "launcher"):
            if not isinstance(name := config.hydra[group], DictConfig):
                error = InputError(f"hydra.{group}={name}: is a group; write hydra/{group}={name}")
                raise SweepRejected(error)
        state = session.current()
        launcher = config.hydra.launcher._target_
        state.jobs_log_to_files = "submitit" in launcher
        if searches(config.hydra):
            try:
                check_maximises(config.hydra.sweeper)
            except InputError as error:
                raise SweepRejected(error) from error
            if _in_other_processes(launcher):
                roots = [config.runs_root, *([] if config.run_dir is None else [Path(config.run_dir).parent])]
                _pass_on_signals([Path(root).expanduser() for root in roots])
            return
        loader = GlobalHydra.instance().config_loader()
        seen: set[str] = set()
        try:
            jobs = _expand(config, loader)
        except Exception as error:
            raise SweepRejected(to_input_error(error)) from error
        for number, overrides in enumerate(jobs):
            composed = OmegaConf.create()
            try:
                composed = _composed(config, loader, number, overrides)
                state.jobs.append(_checked_job(config, composed, overrides, seen))
            except Exception as error:
                reason = error if isinstance(error, BirthplaceError) else unexpected(error)
                state.jobs.clear()
                job = f"(job {number}: {' '.join(overrides)})"
                raise SweepRejected(
                    type(reason)(f"{reason} {job}"), show_traceback=bool(composed.get("traceback"))
                ) from error
        if _in_other_processes(launcher):
            _pass_on_signals({job.directory.path.parent for job in state.jobs})
            with suppress(OSError):
                os.environ[JOB_FAILURES] = tempfile.mkdtemp(prefix="birthplace-lm-sweep-")


def collect_failures(state: session.Session) -> None:
    """Read the errors that jobs in other processes have left."""
    if state.jobs and (folder := os.environ.pop(JOB_FAILURES, None)) is not None:
        for file in sorted(Path(folder).glob("*.json"), key=lambda file: int(file.stem)):
            error = BirthplaceError.from_json(file.read_text(encoding="utf-8"))
            state.jobs[int(file.stem)].failure = error
            state.report_error(error) if state.jobs_log_to_files else state.record_error(error)
        shutil.rmtree(folder, ignore_errors=True)


def unexpected(error: Exception) -> BirthplaceError:
    """Convert an unexpected exception, of a plugin or a bug, to a BirthplaceError with a one-line message."""
    if isinstance(error, OSError) and error.filename is not None:  # it is too long, or may not be read
        return CheckpointError(f"{error.filename}: {error.strerror}")
    return InternalError(f"{type(error).__name__}: {error}; traceback=true shows the traceback")


def _in_other_processes(launcher: str) -> bool:
    """Whether a launcher runs jobs in other processes of this host; Slurm stops jobs by its own rules."""
    return launcher.endswith((".JoblibLauncher", ".LocalLauncher"))


def _pass_on_signals(roots: Iterable[Path]) -> None:
    """From now on a signal to this process stops the jobs that its launcher has started.

    A terminal sends Ctrl-C to the processes of a launcher too. While they start, it would end them with
    tracebacks. So this thread, which starts them, blocks it: they inherit that, and get SIGTERM instead.

    Args:
        roots: folders with the run directories.
    """
    threading.Thread(target=_stop_jobs_after_signal, args=([*roots],), daemon=True).start()
    resource_tracker.ensure_running()  # now, because it unblocks SIGINT in the thread that starts it
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))


def _stop_jobs_after_signal(roots: Sequence[Path]) -> None:
    """Stop each running job once. With SIGTERM, because a second SIGINT would kill it."""
    seen: set[int] = set()
    while True:
        time.sleep(0.1)
        if signals.pending_signal() is None:
            continue
        for file in (file for root in roots for file in root.glob("*/status.json")):
            status = read_status(file.parent)
            pid = status.get("pid")
            if status.get("state") == "running" and isinstance(pid, int) and pid not in seen:
                seen.add(pid)
                if _is_descendant(pid):  # another process may work there, also on another host
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGTERM)


def _is_descendant(pid: int) -> bool:
    """Whether this process, or one that it has started, has started the process."""
    while pid > 1 and pid != os.getpid():
        pid = _parent_of(pid)
    return pid == os.getpid()


def _parent_of(pid: int) -> int:
    """The parent of a process; 0 if there is no such process."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError):  # it has ended
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return 0
    shown = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True)  # on macOS
    return int(shown.stdout.strip() or 0)


def _expand(config: DictConfig, loader: Any) -> list[list[str]]:
    """The overrides of each job, as Hydra's sweeper makes them."""
    overrides = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides += [str(override) for override in config.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    sweeper: Any = get_class(config.hydra.sweeper._target_)
    return [job for batch in sweeper.split_arguments(parsed, None) for job in batch]


def _composed(config: DictConfig, loader: Any, number: int, overrides: list[str]) -> DictConfig:
    """The configuration of a job; Hydra's own becomes the current one."""
    try:
        composed = loader.load_sweep_config(config, overrides)
    except Exception as error:
        raise to_input_error(error) from error
    OmegaConf.set_struct(composed, False)
    composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    composed.pop("hydra")
    return composed


def _checked_job(config: DictConfig, composed: DictConfig, overrides: list[str], seen: set[str]) -> Job:
    directory, corpus, _ = find_run(resolve_and_validate(composed))
    settings, path = directory.config, directory.path
    if str(path) in seen:
        raise InputError(f"run_dir={path}: another job of this sweep has the same; give each its own")
    seen.add(str(path))
    finished = directory.finished and not settings.overwrite
    if not finished and not config.hydra.launcher._target_.endswith(".SlurmLauncher"):  # on other machines
        from birthplace_lm.training.preflight import preflight  # torch takes seconds to import

        preflight(settings, corpus)
    return Job(overrides, directory, finished, directory.status_mtime)


def table(jobs: Sequence[Job], paths: bool = True) -> "Table":
    """One row per job: number, state, exact match, the overrides that vary, run directory.

    Args:
        paths: name the directory by its path; otherwise by the end of its name, as in `ls runs/*-370a96dd`.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs))
    metrics = [job.directory.metrics for job in jobs]
    splits = ["dev", *(["holdout"] if any(m is not None and m.holdout for m in metrics) else [])]
    rows = [["job", "state", *splits, "overrides", "run directory"]]
    for number, job in enumerate(jobs):
        varying = " ".join(override for override in job.overrides if override not in common)
        scores = [_exact_match(metrics[number], split) for split in splits]
        rows.append([str(number), _state(job), *scores, varying, _name(job.directory.path, paths)])
    return rows


def common_facts(jobs: Sequence[Job]) -> dict[str, str]:
    """What is the same for all finished jobs: the baseline, and how to watch their curves."""
    metrics = [m for job in jobs if (m := job.directory.metrics) is not None]
    baselines = {(m.majority_answer, m.baseline.correct, m.baseline.total) for m in metrics}
    drawn = [job.directory for job in jobs if "tensorboard" in job.directory.config.logger]
    roots = {directory.config.runs_root for directory in drawn if directory.config.run_dir is None}
    roots |= {str(directory.path.parent) for directory in drawn if directory.config.run_dir is not None}
    facts = {}
    for answer, correct, total in baselines if len(baselines) == 1 else ():
        facts[f"always {answer!r}"] = f"{correct} of {total}: {correct / total:.1%}"
    if metrics and len(roots) == 1:
        facts["curves"] = f"birthplace-lm tensorboard {shlex.quote(roots.pop())}"
    return facts


def _name(path: Path, whole: bool) -> str:
    match = re.search(r"-[0-9a-f]{8}$", path.name)
    return str(path) if whole or match is None else f"*{match[0]}"


def _exact_match(metrics: RunMetrics | None, split: str) -> str:
    score = getattr(metrics, split, None)
    return "" if score is None else f"{score.exact_match:.1%}"


def _state(job: Job) -> str:
    if job.failure is not None:
        return f"failed ({job.failure.exit_code})" if job.failure.exit_code < 128 else "stopped"
    if job.finished_before:
        return "done before"
    state = job.directory.status.get("state")
    if state in (None, "done"):
        return state or "not started"
    if state == "running" and is_locked(job.directory.path):
        return "running"  # in a process that is not of this sweep
    if job.started_by_this_sweep:
        return {"failed": "failed", "running": "killed"}.get(str(state), "stopped")
    return "failed before" if state == "failed" else "stopped before"  # this sweep has not reached it
