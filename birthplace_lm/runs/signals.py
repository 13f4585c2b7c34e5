"""Signals that ask a run to end: they are noted here, and heeded where nothing is lost."""

import os
import signal
from types import FrameType

from birthplace_lm.errors import Interrupted

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

_received: int | None = None
_process: int | None = None


def install() -> None:
    """Note these signals from now on, but those that whoever started us has them ignored (`nohup`)."""
    global _process
    _process = os.getpid()
    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handler)


def installed() -> bool:
    """Whether this very process notes them; one that a sweep has started does not yet."""
    return _process == os.getpid()


def pending_signal() -> int | None:
    """The first of them that has come, if any has."""
    return _received


def raise_if_signalled(where: str) -> None:
    """End here if a signal has asked for it.

    Raises:
        Stopped: with the signal and `where`.
    """
    if _received is not None:
        raise Interrupted(_received, where)


def _handler(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None and os.getpid() == _process:  # a worker that was forked from us has nothing to save
        _received = number
        if number == signal.SIGINT:
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")
            signal.signal(signal.SIGINT, signal.SIG_DFL)
