"""glibc malloc tuning: do not return freed pages to the operating system between steps."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def release_free_memory() -> None:
    """Return the free pages of the heap to the operating system now. Does nothing if there is no malloc_trim.

    With `disable_malloc_trim` the heap only grows: batches whose shapes keep changing and the caches of
    answers leave gaps that fit nothing else. Releasing them takes less than a tenth of a second, and the next
    step a fraction of its time to get pages again, so this belongs between validations, not between steps.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


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
