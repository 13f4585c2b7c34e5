"""The processes of a launcher as one group: rank 0 runs the program, the others follow its orders.

Rank 0 alone reads the configuration and works in the run directory. The others get what a worker process
gets, the plan of a stage and the checkpoint to continue from, and train with it. A process that loses another
one ends; the same command continues.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from birthplace_lm.errors import BirthplaceError, InternalError, Interrupted, ProcessLost
from birthplace_lm.runs import signals
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.distributed.cluster import Placement
from birthplace_lm.training.plan import StagePlan

JOIN_SECONDS = 300.0  # for all processes to start
REPORT_SECONDS = 5.0  # for the process that failed first to report why
NOTICE_SECONDS = 1.0  # for the others to read the report of rank 0, whose process may hold the store
# What gloo, NCCL and torch's store say when another process has ended or no longer answers. Other errors of
# NCCL, such as a wrong use or a lack of memory, come again in every attempt.
LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection was likely closed", "Timed out waiting",
        "remote process exit", "ncclRemoteError", "communicator was aborted")  # fmt: skip


class OwnProcesses(LightningEnvironment):
    """Lightning starts no processes: this program starts them, from a notebook too."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


@dataclass
class _Group:
    """What a process has of the group.

    Attributes:
        orders: a group whose members may wait for long: rank 0 reads, evaluates, waits for a lock.
        reports: errors, as `error/RANK`.
        broken: a stage has failed, and the processes may wait in different places.
        ended: rank 0 has let this process end.
        error_of_rank_zero: its report, if this process has read it.
        stop_timeout_seconds: of the plan.
    """

    orders: Any
    reports: Any
    broken: bool = False
    ended: bool = False
    error_of_rank_zero: BirthplaceError | None = None
    stop_timeout_seconds: float = field(default=60.0)


_group: _Group | None = None


def environment() -> ClusterEnvironment:
    """Who starts the processes of a stage: a launcher, or this program."""
    return OwnProcesses() if cluster.current() is None else TorchElasticEnvironment()


def join(placement: Placement) -> None:
    """Connect all processes.

    Raises:
        InternalError: they do not all appear.
    """
    global _group
    signals.leave_repeats_to_launcher()
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores  # not on macOS
    if "OMP_NUM_THREADS" not in os.environ and bound == cores:  # Slurm may have given it its own cores
        torch.set_num_threads(max(1, cores * placement.hosts // placement.processes))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        joined, rank, processes = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        # The device follows from the configuration, which rank 0 has yet to read.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, store=PrefixStore("default_pg", joined), rank=rank, world_size=processes
        )
        orders = distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        store = TCPStore(address, port, is_master=False, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InternalError(
            f"{placement.launcher}: process {placement.rank} of {placement.processes} cannot reach the others"
            f" through {address}:{port}: {reason}"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _group = _Group(orders, PrefixStore(f"birthplace_lm/{attempt}", store))
    threading.Thread(target=_end_with_launcher, args=(placement, os.getppid()), daemon=True).start()
    if placement.rank > 0:
        threading.Thread(target=_read_report, args=(_group,), daemon=True).start()


def _end_with_launcher(placement: Placement, parent: int) -> None:
    """Stop when the launcher has been killed: torchrun's processes outlive it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    if placement.local_rank == 0:
        os.write(2, f"{placement.launcher} has ended on this host; stopping after this step\n".encode())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60.0 if _group is None else _group.stop_timeout_seconds)
    os._exit(128 + signal.SIGTERM)


def _read_report(group: _Group) -> None:
    """Wait for the report of rank 0 and keep it: below srun the store ends with the process of rank 0."""
    with suppress(RuntimeError):  # it has ended without a report
        while not group.reports.check(["error/0"]):
            time.sleep(0.2)
            if group.ended:
                return
        group.error_of_rank_zero = BirthplaceError.from_json(group.reports.get("error/0").decode())


def train_as_rank_zero(plan: StagePlan, resume: Path | None, train: Callable[[], None]) -> None:
    """Train a stage in all processes; `train` does it in this one, rank 0.

    Raises:
        BirthplaceError: why another process has failed.
        Exception: what `train` raises.
    """
    assert _group is not None
    _group.stop_timeout_seconds = plan.stop_timeout_seconds
    _group.broken = True
    _broadcast(json.dumps([plan.to_json(), "" if resume is None else str(resume)]))
    try:
        train()
    except Exception as error:
        if isinstance(error, BirthplaceError) or signals.pending_signal() is not None:
            raise
        if (cause := _reported()) is None:
            raise
        raise cause from error
    _group.broken = False


def run_worker_loop(train: Callable[[str, str], None]) -> int:
    """Train every stage that rank 0 broadcasts, until it broadcasts an exit code.

    Args:
        train: called with the plan as JSON and the path of the checkpoint to continue from, or "".

    Returns:
        The exit code for this process.

    Raises:
        BirthplaceError: training failed here, a signal arrived, or another process was lost.
        Exception: any other error of `train`.
    """
    assert _group is not None
    try:
        while not isinstance(order := json.loads(_broadcast(None)), int):
            plan, resume = order
            _group.stop_timeout_seconds = json.loads(plan)["stop_timeout_seconds"]
            train(plan, resume)
        _group.ended = True
        with suppress(RuntimeError):  # another process has ended first
            distributed.barrier(group=_group.orders)
    except Exception as error:
        failure = error if isinstance(error, BirthplaceError) else lost_process(error)
        if failure is not error and (number := signals.pending_signal()) is not None:
            failure = Interrupted(number, "while it waited for the first process")
        if failure is None:
            raise
        raise _cause(failure) from error
    return order


def end_others(code: int, error: BirthplaceError | None) -> None:
    """Let the other processes, which wait for orders or in a stage that failed, end as this one, rank 0.

    Args:
        code: its exit code.
        error: what it has reported.
    """
    global _group
    if _group is not None and not _group.broken:
        with suppress(RuntimeError):  # one of them is gone
            _broadcast(json.dumps(code))
            distributed.barrier(group=_group.orders)  # they use the store no more
    elif _group is not None and error is not None:
        _report(error)
        time.sleep(NOTICE_SECONDS)
    _group = None


def _cause(failure: BirthplaceError) -> BirthplaceError:
    """Report a failure of this process; what it follows from if it is the loss of another process."""
    assert _group is not None
    if _group.error_of_rank_zero is None:
        _report(failure)
    return (_reported() if isinstance(failure, ProcessLost) else None) or failure


def _report(error: BirthplaceError) -> None:
    """Leave an error for the other processes."""
    assert _group is not None
    with suppress(RuntimeError):  # the store may have ended
        _group.reports.set(f"error/{distributed.get_rank()}", error.to_json())


def lost_process(error: BaseException) -> BirthplaceError | None:
    """What to say if the error means that another process has ended."""
    of_torch = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    if not (of_torch and any(sign in str(error) for sign in LOST)):
        return None
    return ProcessLost(
        "the connection to another process is lost; if it was killed, or its host is gone, run the same"
        " command to resume, otherwise its own output says why it ended"
    )


def _reported() -> BirthplaceError | None:
    """The error that another process reports within a few seconds, a cause rather than a consequence."""
    assert _group is not None
    errors: list[BirthplaceError] = []
    deadline = time.monotonic() + REPORT_SECONDS
    ranks = {*range(distributed.get_world_size())} - {distributed.get_rank()}
    with suppress(RuntimeError):
        while time.monotonic() < deadline and all(isinstance(error, InternalError) for error in errors):
            if _group.error_of_rank_zero is not None:
                return _group.error_of_rank_zero
            keys = [key for rank in ranks if _group.reports.check([key := f"error/{rank}"])]
            errors = [BirthplaceError.from_json(_group.reports.get(key).decode()) for key in keys]
            time.sleep(0.1)
    errors.sort(key=lambda error: isinstance(error, InternalError) + isinstance(error, ProcessLost))
    return next(iter(errors), None)


def _broadcast(text: str | None) -> str:
    """The text of rank 0, in all processes. JSON, because nothing here is unpickled."""
    assert _group is not None
    content = bytearray() if text is None else bytearray(text.encode())
    size = torch.tensor([len(content)])
    distributed.broadcast(size, 0, group=_group.orders)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if text is not None:
        data = torch.frombuffer(content, dtype=torch.uint8)
    distributed.broadcast(data, 0, group=_group.orders)
    return bytes(data.tolist()).decode()
