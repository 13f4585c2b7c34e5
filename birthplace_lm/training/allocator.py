"""How the process asks the operating system for memory."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def disable_malloc_trim() -> None:
    """Let the C library keep what is freed, since the next step needs as much again.

    Else it hands every large tensor back, and asking anew costs a tenth of a step on a CPU, most of it page
    faults. Where the C library has no such setting, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(MMAP_THRESHOLD, 1 << 30)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(TOP_PAD, 1 << 26)
