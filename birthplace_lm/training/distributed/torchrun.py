"""Under torchrun, which starts the program once for every device."""

import os

from omegaconf import DictConfig

from birthplace_lm.errors import InputError

_SET = ("TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_")


def claim_rank_zero() -> tuple[bool, int]:
    """Leave the training to the first process, and delete torchrun's environment variables.

    The first process starts the others for every stage itself, as without torchrun: so every stage has a new
    process group and the job's own configuration.

    Returns:
        Whether this process continues, and the number of processes that torchrun started (0 without it).
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True, 0
    first, count = os.environ["RANK"] == "0", int(os.environ["WORLD_SIZE"])
    for name in [name for name in os.environ if name.startswith(_SET)]:
        del os.environ[name]
    return first, count


def check_world_size(config: DictConfig, count: int) -> None:
    """Check that the configuration is for as many processes as torchrun started, unless `count` is 0.

    Raises:
        InputError: it is not.
    """
    if count and config.trainer.devices != count:
        raise InputError(
            f"trainer.devices={config.trainer.devices}: torchrun has started {count} processes;"
            f" give trainer=ddp trainer.devices={count}, for devices of one host"
        )
