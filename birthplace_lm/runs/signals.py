"""Record termination signals; training polls them after each optimizer step, where nothing is lost."""

import os
import signal
from contextlib import suppress
from types import FrameType

from birthplace_lm.errors import Interrupted

HANDLED = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if name in signal.Signals.__members__  # Windows, where exports are loaded, has the first two
)

_received: int | None = None
_process: int | None = None


def install() -> None:
    """Handle these signals from now on, except those that the parent process ignores (`nohup`)."""
    global _process
    _process = os.getpid()
    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handler)


def installed() -> bool:
    """Whether this process handles them. The process of a sweep's job does not at first."""
    return _process == os.getpid()


def pending_signal() -> int | None:
    """The first signal that arrived; None before."""
    return _received


def raise_if_signalled(where: str) -> None:
    """Raise if a signal has arrived.

    Raises:
        Interrupted: with the signal and `where`, a phrase such as "before finetune".
    """
    if _received is not None:
        raise Interrupted(_received, where)


def _handler(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None and os.getpid() == _process:  # a forked data worker has nothing to save
        _received = number
        if number == signal.SIGINT:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")
            signal.signal(signal.SIGINT, signal.SIG_DFL)
