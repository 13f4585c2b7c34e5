"""`train.py` in processes that start in a moment, so that they can be killed by the hundred."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_context = multiprocessing.get_context("forkserver")


class Program:
    """`python train.py ARGUMENTS`, in a process group of its own, forked from a server that has torch already.

    Attributes:
        stdout, stderr: files that it writes to, anew each time.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self.began = time.monotonic()
        paths = str(self.stdout), str(self.stderr)
        self._process = _context.Process(target=_train, args=(list(arguments), *paths))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def heeds(self, number: int) -> bool:
        """Whether it has installed a handler of this signal."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
        )
        return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal; to all of its group, as a terminal does."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            pass

    def running(self, seconds: float) -> bool:
        """Whether it is still running after that time."""
        self._process.join(seconds)
        return self._process.exitcode is None

    def wait(self, seconds: float = 120) -> int:
        """Its exit code as a shell shows it."""
        assert not self.running(seconds), f"hangs: {self.stderr.read_text()}"
        code = self._process.exitcode
        self._process.close()
        return code if code >= 0 else 128 - code


def start_server() -> None:
    """Import everything once."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _context.set_forkserver_preload(
        ["__main__", "program", "birthplace_lm.pipeline", "birthplace_lm.sweep", "torch.utils.tensorboard"]
    )
    forkserver.ensure_running()


def _train(arguments: list[str], stdout: str, stderr: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of data loading workers; ours would be inherited
    for number in SIGNALS:  # whoever runs the tests may ignore some
        signal.signal(number, signal.SIG_DFL)
    for file, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")
