"""Training in several processes: one child of our own per device, started from the job's saved configuration.

Lightning would start its children by running the command line again, which in a sweep is the whole sweep
(Lightning issue 11300). Ours get one configuration file and one stage.
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
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.error import BirthplaceError, CheckpointError, InputError, NumericError

log = logging.getLogger(__name__)

GRACE_SECONDS = 20.0  # between asking the others to stop and making them


def fit_in_processes(count: int, stage: str, config: DictConfig, folder: Path, start: Path | None) -> None:
    """Train a stage in `count` processes of this host and wait for them.

    When one of them ends badly the others are stopped too.

    Raises:
        BirthplaceError: what the first process to fail said, or how it ended.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch, "config.yaml")
        job.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        arguments = [str(job), stage, str(folder), *([] if start is None else [str(start)])]
        command = [sys.executable, "-m", "birthplace_lm.rank", *arguments]
        port = _free_port()
        children = []
        for rank in range(count):
            with Path(scratch, f"{rank}.err").open("wb") as stderr:
                environment = _environment(rank, count, port)
                children.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
                    )
                )
            threading.Thread(target=_relay, args=(children[-1],), daemon=True).start()
        try:
            failed = _wait(children)
        finally:
            _stop(children)
        if failed is not None:
            said = Path(scratch, f"{failed}.err").read_text(encoding="utf-8", errors="replace")
            raise _error(children[failed].returncode, said, stage, failed)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What tells Lightning that its processes exist already, and which one this is."""
    return {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count))),
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _relay(child: subprocess.Popen[str]) -> None:
    """Log what a child prints as if it were ours."""
    assert child.stdout is not None
    for line in child.stdout:
        log.info("%s", line.rstrip("\n"))


def _wait(children: list[subprocess.Popen[str]]) -> int | None:
    """The rank of the first child that failed, or None when all have ended well."""
    while True:
        codes = [child.poll() for child in children]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _stop(children: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _error(code: int, said: str, stage: str, rank: int) -> BirthplaceError:
    log.debug("rank %d of %s said:\n%s", rank, stage, said)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    message = (
        lines[-1].removeprefix("error: ") if lines else f"{stage}: process {rank} ended with code {code}"
    )
    kinds: dict[int, type[BirthplaceError]] = {2: InputError, 3: NumericError, 4: CheckpointError}
    return kinds.get(code, BirthplaceError)(message)
