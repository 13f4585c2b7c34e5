"""Launcher: train a stage in several processes of this host, one per device.

Lightning would start its processes by running the command line again, which in a sweep is the whole sweep
(Lightning issue 11300). Ours get one plan of one stage. They end with this process, however it ends: each
holds a pipe that only this process writes to.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from birthplace_lm.errors import BirthplaceError, InternalError, Interrupted, ProcessLost
from birthplace_lm.runs import signals
from birthplace_lm.training.plan import StagePlan

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # for the others after the first has failed: most fail for the same reason
STACK_SECONDS = 0.2  # to write stacks


def fit_in_processes(plan: StagePlan, resume: Path | None) -> None:
    """Train a stage in `plan.processes` processes and wait for them.

    A signal is passed on to all of them, and they stop after the same step; what does not stop within
    `plan.stop_timeout_seconds` is killed. When one process fails the others are killed too: they would wait
    for it forever.

    Raises:
        BirthplaceError: the error of the process that failed first, or how it ended.
    """
    port, ranks = _free_port(), range(plan.processes)
    children: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:  # files without a name: nothing is left if this process is killed
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in ranks]
        reports = [stack.enter_context(tempfile.TemporaryFile()) for _ in ranks]
        try:
            for rank in ranks:
                children.append(_start(plan, resume, rank, port, outputs[rank], reports[rank]))
            codes = _wait(children, plan.stop_timeout_seconds)
        finally:
            _write_stacks(children)
            for child in children:
                child.kill()
            for child in children:
                child.wait()
        for rank in ranks:
            log.debug(
                "process %d of %s: exit code %s\n%s", rank, plan.name, codes[rank], _text(outputs[rank])
            )
        # A process that was still running reports, if anything, that the others were killed.
        errors = [None if codes[rank] is None else _reported(_text(reports[rank])) for rank in ranks]
    if cause := _cause(codes, errors, plan):
        raise cause


def _start(
    plan: StagePlan, resume: Path | None, rank: int, port: int, output: IO[bytes], report: IO[bytes]
) -> subprocess.Popen[str]:
    arguments = [plan.to_json(), "" if resume is None else str(resume), str(report.fileno())]
    child = subprocess.Popen(
        [sys.executable, "-m", "birthplace_lm.training.worker", *arguments],
        env={
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // plan.processes)),
            **os.environ,
            # They tell Lightning that its processes exist already, and which one this is.
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(plan.processes),
            "NODE_RANK": "0",
            "LOCAL_RANK": str(rank),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # packages that plugins= names
            "PYTHONIOENCODING": "utf-8",  # not the terminal's: their output is a pipe to this process
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        pass_fds=[report.fileno()],
        encoding="utf-8",
        start_new_session=True,  # this process passes Ctrl-C on
    )
    threading.Thread(target=_relay, args=(child,), daemon=True).start()
    return child


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _relay(child: subprocess.Popen[str]) -> None:
    """Log what a process prints."""
    assert child.stdout is not None
    for line in child.stdout:
        log.info("%s", line.rstrip("\n"))


def _wait(children: list[subprocess.Popen[str]], stop_timeout: float) -> list[int | None]:
    """Wait until all processes have ended, or have used up their time; the exit codes, None if running."""
    deadline, passed_on, failed = float("inf"), False, False
    while None in (codes := [child.poll() for child in children]) and time.monotonic() < deadline:
        number = signals.pending_signal()
        if number is not None and not passed_on:
            passed_on, deadline = True, min(deadline, time.monotonic() + stop_timeout)
            for child in children:
                child.send_signal(number)
        if any(codes) and not failed:
            failed, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.05)
    return codes


def _write_stacks(children: list[subprocess.Popen[str]]) -> None:
    """Let every process that has not ended say where it waits; see `worker.main`."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.send_signal(signal.SIGUSR2)
    if running:
        time.sleep(STACK_SECONDS)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _reported(text: str) -> BirthplaceError | None:
    """The error that a process reported before it ended, if it did."""
    return BirthplaceError.from_json(text) if text else None


def _cause(
    codes: list[int | None], errors: list[BirthplaceError | None], plan: StagePlan
) -> BirthplaceError | None:
    """The error to show: the cause rather than what followed from it in the other processes."""
    reported = [error for error in errors if error is not None]
    killed: list[BirthplaceError] = []
    crashed: list[BirthplaceError] = []
    for rank, code in enumerate(codes):
        if not code or errors[rank] is not None:
            continue
        if -code in (*signals.HANDLED, signal.SIGKILL):
            killed.append(Interrupted(-code, f"in process {rank} of {plan.name}"))
        else:
            how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            crashed.append(InternalError(f"{plan.name}: process {rank} {how}; log.txt has its output"))
    hung: list[BirthplaceError] = []
    if None in codes and (number := signals.pending_signal()) is not None:
        where = f"in {plan.name}, after {plan.stop_timeout_seconds:g} s in which a process did not stop"
        hung.append(Interrupted(number, where))
    internal = [error for error in reported if isinstance(error, InternalError)]
    internal.sort(key=lambda error: isinstance(error, ProcessLost))
    own = [error for error in reported if not isinstance(error, InternalError)]
    own.sort(key=lambda error: isinstance(error, Interrupted))
    return next(iter([*killed, *own, *hung, *crashed, *internal]), None)
