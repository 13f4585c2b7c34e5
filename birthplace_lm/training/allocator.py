"""glibc malloc tuning: do not return freed pages to the operating system between steps."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def disable_malloc_trim() -> None:
    """Let malloc keep freed memory, because the next step needs as much again.

    Otherwise malloc returns every large tensor to the operating system. To get the pages again costs a tenth
    of a step on a CPU, mostly in page faults. Does nothing if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(MMAP_THRESHOLD, 1 << 30)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(TOP_PAD, 1 << 26)
