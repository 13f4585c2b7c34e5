"""Processes of a launcher: how they connect, and what counts as lost (in the words of torch 2.13)."""

import os
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from stage import forked
from torch import distributed
from torch.distributed import DistBackendError, DistNetworkError

from birthplace_lm.errors import InternalError, ProcessLost
from birthplace_lm.training.distributed import group
from birthplace_lm.training.distributed.cluster import Placement
from birthplace_lm.training.distributed.group import lost_process
from birthplace_lm.training.distributed.launcher import _free_port

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp"
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{GLOO}/pair.cc:537] Read error [127.0.0.1]:56523: Connection reset by peer. This is"),
        RuntimeError(f"{GLOO}/pair.cc:547] Connection closed by peer [127.0.0.1]:20177"),
        RuntimeError(f"{GLOO}/unbound_buffer.cc:78] Timed out waiting 300000ms for recv operation"),
        DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server"),
        DistBackendError(f"{NCCL}remote process exited or there was a network error, NCCL version 2.27.3"),
        DistBackendError("NCCL communicator was aborted on rank 1."),
    ],
)
def test_a_connection_that_is_lost_is_a_lost_process(error: Exception) -> None:
    assert isinstance(lost_process(error), ProcessLost)


@pytest.mark.parametrize(
    "error",
    [
        DistBackendError(
            f"{NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), Duplicate GPU detected"
        ),
        DistBackendError(f"{NCCL}unhandled cuda error, Cuda failure 2 'out of memory'"),
        RuntimeError("tracking server: Connection refused"),
        RuntimeError("tracking server: Connection reset by peer"),
    ],
)
def test_another_error_is_none(error: Exception) -> None:
    """Bug: exit code 5 and "run the same command to resume" for errors that come again in every attempt."""
    assert lost_process(error) is None


def join_alone() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    os.environ.update(place)
    group.join(Placement("srun", 0, 0, 0, 1, 1))


def test_collective_calls_wait_as_long_as_lightnings() -> None:
    """Bugs: the time for the start was that of every call too, and the name of gloo was unknown."""

    def work() -> None:
        join_alone()
        assert distributed.get_backend() == "gloo"
        default: Any = distributed.group.WORLD
        assert default._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=30)

    assert forked(work) == 0


def test_beside_a_gpu_processes_can_train_on_either_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: on a host with GPUs there was no backend for trainer.accelerator=cpu."""
    init = Mock()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", init)

    def work() -> None:
        with pytest.raises(InternalError, match="has not been initialized"):
            join_alone()
        assert init.call_args.args == ("cpu:gloo,cuda:nccl",)

    assert forked(work) == 0
