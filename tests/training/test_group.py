"""What counts as a lost process: the texts are those of torch 2.13."""

import pytest
from torch.distributed import DistBackendError, DistNetworkError

from birthplace_lm.errors import ProcessLost
from birthplace_lm.training.distributed.group import lost_process

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
