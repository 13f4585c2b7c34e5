"""Record termination signals; training polls them after each optimizer step, where nothing is lost."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from birthplace_lm.errors import Interrupted

HANDLED = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if name in signal.Signals.__members__  # Windows, where exports are loaded, has the first two
)

_received: int | None = None
_process: int | None = None
_second_ctrl_c: Any = signal.SIG_DFL  # the handler of SIGINT after the first


def install(numbers: Iterable[signal.Signals] = HANDLED) -> None:
    """Handle these signals from now on, except those that the parent process ignores (`nohup`)."""
    global _process
    _process = os.getpid()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handler)


@contextmanager
def recorded() -> Iterator[None]:
    """Record signals during the block, which polls them; after it, the first one takes its usual effect.

    For a process that continues afterwards: in a notebook Ctrl-C becomes a KeyboardInterrupt once the work is
    saved. Only the main thread can handle signals; in another thread the block runs as it is.
    """
    global _received, _process, _second_ctrl_c
    if installed() or threading.current_thread() is not threading.main_thread():
        yield
        return
    # None is a handler of C code, such as faulthandler's: it could not be put back.
    handlers = {number: h for number in HANDLED if (h := signal.getsignal(number)) is not None}
    install(handlers)
    _second_ctrl_c = handlers.get(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        received, _received, _process, _second_ctrl_c = _received, None, None, signal.SIG_DFL
        if received is not None:
            signal.raise_signal(received)


def leave_repeats_to_launcher() -> None:
    """Ignore Ctrl-C after the first: a launcher sends what the terminal has sent already."""
    global _second_ctrl_c
    _second_ctrl_c = signal.SIG_IGN


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
            if _second_ctrl_c is not signal.SIG_IGN:
                with suppress(OSError):  # the terminal may be gone
                    os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")
            signal.signal(signal.SIGINT, _second_ctrl_c)
