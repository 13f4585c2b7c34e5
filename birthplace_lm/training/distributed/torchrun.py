"""Under torchrun, which starts the program once for every device."""

import os

from omegaconf import DictConfig

from birthplace_lm.errors import InputError

_SET = ("TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_")

_processes = 0  # that it has started, of which the first goes on


def claim_rank_zero() -> bool:
    """Whether this process has something to do. The first starts the others anew for every stage, as always:
    so every stage begins with a new group of processes, and a job's own configuration.
    """
    global _processes
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    first = os.environ["RANK"] == "0"
    _processes = int(os.environ["WORLD_SIZE"])
    for name in [name for name in os.environ if name.startswith(_SET)]:
        del os.environ[name]
    return first


def check_world_size(config: DictConfig) -> None:
    """Check that the configuration is for as many processes as there are.

    Raises:
        InputError: it is not.
    """
    if _processes and config.trainer.devices != _processes:
        raise InputError(
            f"trainer.devices={config.trainer.devices}: torchrun has started {_processes} processes;"
            f" give trainer=ddp trainer.devices={_processes}, for devices of one host"
        )
