"""The processes that make batches: what they start from, the memory they share, how they end."""

import multiprocessing
import os
import shutil
import signal
import threading
from typing import Any

from birthplace_lm.errors import InputError

SHARED_MEMORY = "/dev/shm"
PREFETCHED_BATCHES = 2  # of each worker
MIN_SHARED_BYTES = 1 << 20  # of each worker


def threadless_context() -> Any:
    """A multiprocessing context that starts workers from a process without threads; None if there is none.

    A process of several has threads that communicate. A fork copies the locks that they hold at this moment,
    and waits for them forever (pytorch/pytorch issue 130610).
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["birthplace_lm.data.batching"])  # torch takes seconds to import
    return context


def check_shared_memory(key: str, num_workers: int, processes: int, batch_bytes: int) -> None:
    """Check that the shared memory, through which workers return batches, is large enough.

    Without this check torch fails with an error that does not mention shared memory.

    Args:
        key: names `num_workers` in the message.
        num_workers: of each process of this host.
        processes: of this host.
        batch_bytes: the size of the batch of one process.

    Raises:
        InputError: it has no room for the batches that are fetched in advance, or less than 1 MiB per worker.
    """
    if num_workers == 0 or not os.path.isdir(SHARED_MEMORY):
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = num_workers * processes * max(PREFETCHED_BATCHES * batch_bytes, MIN_SHARED_BYTES)
    if free < needed:
        raise InputError(
            f"{key}={num_workers}: needs {needed >> 10} kB of shared memory, and {SHARED_MEMORY} has"
            f" {free >> 10} kB; enlarge it (docker run --shm-size=1g) or take {key}=0"
        )


def end_with_parent(worker_id: int) -> None:
    """Ends a worker when its training process ends, and not before (`worker_init_fn` of a DataLoader).

    A SIGTERM to all processes of a job would end torch's workers before the last step is saved, so workers
    ignore it. torch does not notice a training process that is killed while the worker starts. The pid of
    the parent does not help: with the start method forkserver it is that of the server.
    """

    def exit_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()
