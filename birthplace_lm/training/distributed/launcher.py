"""Training in several processes: one child of our own per device, started from the job's saved configuration.

Lightning would start its children by running the command line again, which in a sweep is the whole sweep
(Lightning issue 11300). Ours get one configuration file and one stage. They end with us, however we end: each
holds a pipe that only we write to.
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

from birthplace_lm.errors import (
    BirthplaceError,
    CheckpointError,
    InputError,
    InternalError,
    Interrupted,
    NonFiniteError,
)
from birthplace_lm.runs import signals
from birthplace_lm.training.plan import StagePlan

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # for the others after the first has failed: most fail for the same reason


def fit_in_processes(plan: StagePlan, resume: Path | None) -> None:
    """Train a stage in `plan.processes` processes of this host and wait for them.

    A signal is passed on to all of them, and they stop after the same step. When one fails the others are
    killed: they would wait for it for ever.

    Raises:
        BirthplaceError: what the first process to fail said, or how it ended.
    """
    count, stage = plan.processes, plan.name
    task = [plan.to_json(), "" if resume is None else str(resume)]
    command = [sys.executable, "-m", "birthplace_lm.training.worker", *task]
    port = _free_port()
    children: list[subprocess.Popen[str]] = []
    with ExitStack() as held:
        errors = [held.enter_context(tempfile.TemporaryFile()) for _ in range(count)]  # gone if we are killed
        try:
            for rank in range(count):
                child = subprocess.Popen(
                    command,
                    env=_environment(rank, count, port),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors[rank],
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for us to pass on
                )
                children.append(child)
                threading.Thread(target=_relay, args=(child,), daemon=True).start()
            codes = _wait(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
        said = [_content(error) for error in errors]
    for rank, text in enumerate(said):
        log.debug("process %d of %s ended with %d:\n%s", rank, stage, codes[rank], text)
    if error := _error(codes, said, stage):
        raise error


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What tells Lightning that its processes exist already, and which one this is."""
    return {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "PYTHONIOENCODING": "utf-8",  # whatever the terminal's encoding is: their output is a pipe to us
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _relay(child: subprocess.Popen[str]) -> None:
    """Log what a child prints as if it were ours."""
    assert child.stdout is not None
    for line in child.stdout:
        log.info("%s", line.rstrip("\n"))


def _wait(children: list[subprocess.Popen[str]]) -> list[int]:
    """Until all have ended, or the grace after the first failure has; 0 stands for those still running."""
    passed_on = False
    failed_at: float | None = None
    while None in (codes := [child.poll() for child in children]):
        number = signals.pending_signal()
        if number is not None and not passed_on:
            passed_on = True
            for child in children:
                child.send_signal(number)
        if failed_at is None and any(codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + GRACE_SECONDS:
            break
        time.sleep(0.05)
    return [code or 0 for code in codes]


def _error(codes: list[int], said: list[str], stage: str) -> BirthplaceError | None:
    """What to say about the processes: the cause rather than what the others made of it."""
    kinds: dict[int, type[BirthplaceError]] = {2: InputError, 3: NonFiniteError, 4: CheckpointError}
    for rank, code in enumerate(codes):
        if code in kinds:
            return kinds[code](_last_line(said[rank]).removeprefix("error: "))
    for code in codes:
        if code > 128:
            return Interrupted(code - 128, f"in {stage}")
    ended = [(rank, code) for rank, code in enumerate(codes) if code]
    for rank, code in ended:
        if -code in (*signals.HANDLED, signal.SIGKILL):
            return Interrupted(-code, f"in process {rank} of {stage}")
    for rank, code in ended:
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return InternalError(f"{stage}: process {rank} {how}: {_last_line(said[rank])}; log.txt has more")
    return None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
