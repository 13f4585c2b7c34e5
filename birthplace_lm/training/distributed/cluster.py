"""Placement: this process among those that torchrun, srun or submitit has started, one for each device.

Imports neither torch nor lightning.
"""

import os
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from birthplace_lm.errors import InputError

# Of torchrun; deleted where it has started one process, so that a child is not taken for one of several.
_SET_BY_TORCHRUN = ("TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK",
                    "GROUP_WORLD_SIZE", "ROLE_", "MASTER_")  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """This process among those of a launcher.

    Attributes:
        launcher: its name, for messages.
        rank: of this process among all, from 0.
        local_rank: of this process among those of its host, from 0.
        host: number of the host, from 0.
        processes: on all hosts.
        hosts: number of hosts.
    """

    launcher: str
    rank: int
    local_rank: int
    host: int
    processes: int
    hosts: int


_placement: Placement | None = None


def current() -> Placement | None:
    """The placement that `claim` has read; None if this process works alone or starts others itself."""
    return _placement


def claim(environment: MutableMapping[str, str] = os.environ) -> Placement | None:
    """Read the placement of this process from its environment, and set the variables of torchrun for it.

    Returns:
        None for a process that no launcher, or a launcher of one process, has started.
    """
    global _placement
    placement = _from_torchrun(environment) or _from_slurm(environment) or _from_submitit(environment)
    if placement is not None and placement.processes == 1:
        for name in [name for name in environment if name.startswith(_SET_BY_TORCHRUN)]:
            del environment[name]
        placement = None
    if placement is not None:
        numbers = {
            "RANK": placement.rank,
            "LOCAL_RANK": placement.local_rank,
            "GROUP_RANK": placement.host,
            "WORLD_SIZE": placement.processes,
            "LOCAL_WORLD_SIZE": placement.processes // placement.hosts,
        }
        environment.update({name: str(number) for name, number in numbers.items()})
    _placement = placement
    return placement


def _from_torchrun(environment: MutableMapping[str, str]) -> Placement | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE")
    return Placement("torchrun", *(int(environment[name]) for name in names))


def _from_slurm(environment: MutableMapping[str, str]) -> Placement | None:
    """A task of srun. The script of sbatch has most of its variables too, but not those of a step."""
    if "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    names = ("PROCID", "LOCALID", "NODEID", "STEP_NUM_TASKS", "STEP_NUM_NODES")
    placement = Placement("srun", *(int(environment[f"SLURM_{name}"]) for name in names))
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
    _set_port(environment, f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}")
    return placement


def _from_submitit(environment: MutableMapping[str, str]) -> Placement | None:
    """A task of submitit on this host; on Slurm, submitit starts its tasks with srun."""
    if "SUBMITIT_LOCAL_GLOBALID" not in environment:
        return None
    names = ("GLOBALID", "LOCALID", "NODEID", "NTASKS", "JOB_NUM_NODES")
    placement = Placement("submitit", *(int(environment[f"SUBMITIT_LOCAL_{name}"]) for name in names))
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    _set_port(environment, environment["SUBMITIT_LOCAL_JOB_ID"])
    return placement


def _first_host(nodes: str) -> str:
    """`node07` of `node[07-09,12],other`."""
    prefix, bracket, numbers = nodes.split(",")[0].partition("[")
    return prefix + numbers.rstrip("]").split("-")[0] if bracket else prefix


def _set_port(environment: MutableMapping[str, str], job: str) -> None:
    """A port that all processes of a job compute, unless MASTER_PORT names one."""
    environment.setdefault("MASTER_PORT", str(20_000 + zlib.crc32(job.encode()) % 10_000))


def check_layout(config: DictConfig, placement: Placement | None) -> None:
    """Check that the configuration is for the processes that a launcher has started.

    Raises:
        InputError: it is for others.
    """
    devices, hosts = config.trainer.devices, config.trainer.num_nodes
    count = _device_count(devices)
    if placement is None:
        if hosts not in (None, 1):
            each = count or "DEVICES"
            raise InputError(
                f"trainer.num_nodes={hosts}: this program starts processes on its own host alone; start it on"
                f" every host with torchrun --nnodes={hosts} --nproc-per-node={each}, or all with srun"
                f" --nodes={hosts} --ntasks-per-node={each}"
            )
        return
    each, rest = divmod(placement.processes, placement.hosts)
    if rest:
        raise InputError(
            f"{placement.launcher}: has started {placement.processes} processes on {placement.hosts} hosts;"
            " start the same number on every host"
        )
    if count not in (None, each) or hosts not in (None, placement.hosts):
        key = f"trainer.devices={devices}" if count not in (None, each) else f"trainer.num_nodes={hosts}"
        where = "" if placement.hosts == 1 else f" on each of {placement.hosts} hosts"
        nodes = "" if hosts is None else f" trainer.num_nodes={placement.hosts}"
        raise InputError(
            f"{key}: {placement.launcher} has started {each} process{'es' * (each > 1)}{where}; give"
            f" trainer=ddp trainer.devices={each}{nodes}"
        )


def _device_count(devices: Any) -> int | None:
    """How many devices `trainer.devices` names; None if that depends on the host."""
    if OmegaConf.is_list(devices) or isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([index for index in devices.split(",") if index.strip()])
    return None if str(devices) in ("auto", "-1") else int(devices)
