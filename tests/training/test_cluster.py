"""The environments of torchrun, srun and submitit, as their documentation and sources have them."""

from typing import Any

import pytest

from birthplace_lm.errors import InputError
from birthplace_lm.training.distributed import cluster
from birthplace_lm.training.distributed.cluster import Placement, check_layout

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "job", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500",
}  # fmt: skip
SBATCH = {  # the script of a job
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node[07-08]",
}  # fmt: skip
SRUN = SBATCH | {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[07-08]",
}  # fmt: skip
SUBMITIT = {
    "SUBMITIT_LOCAL_JOB_ID": "99", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_placement", None)


def test_each_launcher_places_its_processes() -> None:
    assert cluster.claim({**TORCHRUN}) == Placement("torchrun", 3, 1, 1, 4, 2) == cluster.current()
    environment = {**SRUN}
    assert cluster.claim(environment) == Placement("srun", 3, 1, 1, 4, 2)
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        assert environment[name] == TORCHRUN[name]
    assert environment["MASTER_ADDR"] == "node07"
    first = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert cluster.claim(first) == Placement("srun", 0, 0, 0, 4, 2)
    assert first["MASTER_PORT"] == environment["MASTER_PORT"]
    assert cluster.claim({**SUBMITIT}) == Placement("submitit", 1, 1, 0, 2, 1)


def test_what_the_user_sets_counts() -> None:
    environment = {**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}
    cluster.claim(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.7", "1234")


@pytest.mark.parametrize(
    "environment",
    [{}, SBATCH, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, {**SUBMITIT, "SUBMITIT_LOCAL_NTASKS": "1"}],
)
def test_one_process_is_alone(environment: dict[str, str]) -> None:
    """In the script of sbatch, SLURM_NTASKS counts tasks that nobody has started."""
    assert cluster.claim({**environment}) is None
    assert cluster.current() is None


def test_one_process_of_torchrun_leaves_no_variable_to_its_children() -> None:
    environment = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "HOME": "/root"}
    assert cluster.claim(environment) is None
    assert environment == {"HOME": "/root"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node[07-09,12]", "node07"), ("a-[3,5],b7", "a-3"), ("gpu1,gpu2", "gpu1")],
)
def test_the_first_host_of_slurm(nodes: str, first: str) -> None:
    environment = {**SRUN, "SLURM_STEP_NODELIST": nodes}
    cluster.claim(environment)
    assert environment["MASTER_ADDR"] == first


FOUR = Placement("srun", 0, 0, 0, 4, 2)
STARTED = "srun has started 2 processes on each of 2 hosts; give trainer=ddp trainer.devices=2"


@pytest.mark.parametrize(
    ("overrides", "placement", "message"),
    [
        ([], FOUR, f"trainer.devices=1: {STARTED}"),
        (["trainer.devices=[0,1,2]"], FOUR, f"trainer.devices=[0, 1, 2]: {STARTED}"),
        (["trainer=ddp", "trainer.num_nodes=4"], FOUR, f"trainer.num_nodes=4: {STARTED} trainer.num_nodes=2"),
        (
            [],
            Placement("torchrun", 0, 0, 0, 2, 1),
            "trainer.devices=1: torchrun has started 2 processes;",
        ),
        (
            ["trainer=ddp"],
            Placement("srun", 0, 0, 0, 3, 2),
            "srun: has started 3 processes on 2 hosts",
        ),
        (
            ["trainer=ddp", "trainer.num_nodes=2"],
            None,
            "trainer.num_nodes=2: this program starts processes on its own host alone; start it on every host"
            " with torchrun --nnodes=2 --nproc-per-node=2",
        ),
    ],
)
def test_another_layout_is_refused(
    overrides: list[str], placement: Placement | None, message: str, configure: Any
) -> None:
    with pytest.raises(InputError) as error:
        check_layout(configure(*overrides), placement)
    assert message in str(error.value)


@pytest.mark.parametrize("overrides", [[], ["trainer.num_nodes=2"], ["trainer.devices=auto"]])
def test_the_layout_of_the_launcher_fits(overrides: list[str], configure: Any) -> None:
    check_layout(configure("trainer=ddp", *overrides), FOUR)
