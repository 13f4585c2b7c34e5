"""Processes that torchrun or srun has started, as two hosts on one machine: killed, resumed, refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import TRAIN, Program, curves, leftovers, outcome, saved_step

from birthplace_lm.runs import checkpoint
from birthplace_lm.training.distributed.launcher import _free_port

SECONDS = 240  # until all are gone


def arguments(people: Path, root: Path, *overrides: str) -> list[str]:
    return [
        "model=tiny", "model.n_layer=1", f"data.root={people}", "pretrain=none", "trainer=ddp",
        "stages.finetune.max_epochs=10", "stages.finetune.batch_size=4",
        "stages.finetune.check_val_every_n_epoch=10",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=2",
        f"runs_root={root}", f"run_dir={root / 'run'}", *overrides,
    ]  # fmt: skip


def torchrun(arguments: list[str], processes: int) -> "list[subprocess.Popen[str]]":
    """Two agents with so many processes each."""
    place = ["--nnodes=2", f"--nproc-per-node={processes}", "--master-addr=127.0.0.1"]
    place += [f"--master-port={_free_port()}", "--max-restarts=0"]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                *place,
                f"--node-rank={host}",
                str(TRAIN),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for host in range(2)
    ]


def srun(arguments: list[str], folder: Path, tasks_per_node: int, nodes: int = 2) -> list[Program]:
    """The tasks of a step, with the variables that srun sets."""
    tasks = tasks_per_node * nodes
    environment = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "MASTER_PORT": str(_free_port())}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])  # of the parts of a user
    environment |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": str(nodes)}
    environment |= {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NTASKS": str(tasks)}
    programs = []
    for rank in range(tasks):
        node, local = divmod(rank, tasks_per_node)
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        programs.append(Program(arguments, folder / str(rank), environment | own))
    return programs


def processes_of(run: Path) -> list[int]:
    """The processes that have the folder on their command line."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"run_dir={run}".encode() in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
        except OSError:  # it has just ended
            continue
    return pids


def stop_after(steps: int, run: Path, running: "subprocess.Popen[str] | Program") -> None:
    """Wait until it has saved so many steps."""
    ended = running.poll if isinstance(running, subprocess.Popen) else lambda: not running.running(0) or None
    while ended() is None and saved_step(run / "finetune") < steps:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that this program has started itself."""
    root = tmp_path_factory.mktemp("alone")
    program = Program(arguments(people, root), root / "output")
    assert program.wait() == 0, program.stderr.read_text()
    return root / "run"


@pytest.mark.torture
def test_an_agent_of_torchrun_is_killed_and_the_same_commands_resume(
    alone: Path, people: Path, tmp_path: Path
) -> None:
    """The first agent once ran all processes, and the second ended with 0."""
    run = tmp_path / "run"
    command = arguments(people, tmp_path, "trainer.devices=1", "trainer.num_nodes=2")
    agents = torchrun(command, processes=1)
    stop_after(4, run, agents[0])
    os.kill(agents[1].pid, signal.SIGKILL)
    (out, err), (_, other_err) = (agent.communicate(timeout=SECONDS) for agent in agents)
    assert agents[0].returncode == 1, out + err
    assert err.count("interrupted by SIGTERM after step") == 1
    assert err.count("run the same command to resume") == 1
    assert "torchrun has ended on this host; stopping after this step" in other_err
    assert 'Traceback (most recent call last):\n  File "' + str(TRAIN) not in err + other_err
    assert "exitcode  : 143" in err  # torchrun's report
    while processes_of(run):
        time.sleep(0.1)
    assert '"preempted"' in (run / "status.json").read_text()
    assert saved_step(run / "finetune") >= 4

    agents = torchrun(command, processes=1)
    (out, err), (other_out, other_err) = (agent.communicate(timeout=SECONDS) for agent in agents)
    assert [agent.returncode for agent in agents] == [0, 0], out + err + other_out + other_err
    assert "finetune: resuming after step" in out
    assert "4 rows a step (2 in each of 2 processes)" in out
    assert (out + other_out).count("dev exact match") == 1
    assert outcome(run) == outcome(alone)
    assert leftovers(tmp_path) == []


def test_a_task_of_srun_is_killed_and_another_number_continues_also_after_a_signal(
    alone: Path, people: Path, tmp_path: Path
) -> None:
    """FSDP2 on two hosts with two processes each, then with one each; to 1e-4 the loss of DDP.

    A signal to any one process stops all of them after the same step.
    """
    run = tmp_path / "run"
    tasks = srun(arguments(people, tmp_path, "trainer=fsdp2"), tmp_path / "first", tasks_per_node=2)
    stop_after(4, run, tasks[0])
    tasks[3].send(signal.SIGKILL)
    assert [task.wait(SECONDS) for task in tasks] == [5, 5, 5, 137]
    messages = [task.stderr.read_text() for task in tasks]
    assert messages[1] == messages[3] == ""
    for message in (messages[0], messages[2]):  # of each host
        assert message.startswith("error: the connection to another process is lost;")
        assert message.count("\n") == 1
    assert '"preempted"' in (run / "status.json").read_text()
    saved = saved_step(run / "finetune")

    fewer = arguments(people, tmp_path, "trainer=fsdp2", "trainer.devices=1")
    tasks = srun(fewer, tmp_path / "second", tasks_per_node=1)
    stop_after(saved + 4, run, tasks[0])
    tasks[1].send(signal.SIGUSR1)
    assert [task.wait(SECONDS) for task in tasks] == [138, 138], [task.stderr.read_text() for task in tasks]
    output = tasks[0].stdout.read_text()
    assert f"finetune: resuming after step {saved}" in output
    assert "processes was 4 and is 2" in output
    assert '"preempted"' in (run / "status.json").read_text()
    stopped = saved_step(run / "finetune")
    assert f"interrupted by SIGUSR1 after step {stopped} of finetune" in tasks[0].stderr.read_text()

    tasks = srun(fewer, tmp_path / "third", tasks_per_node=1)
    assert [task.wait(SECONDS) for task in tasks] == [0, 0], [task.stderr.read_text() for task in tasks]
    assert [task.stderr.read_text() for task in tasks] == ["", ""]
    assert f"finetune: resuming after step {stopped}" in tasks[0].stdout.read_text()
    expected, losses = (curves(path / "finetune")["finetune/loss"] for path in (alone, run))
    assert [step for step, _ in losses] == list(range(30))
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected], abs=1e-4)
    assert checkpoint.parse_step(checkpoint.list_checkpoints(run / "finetune")[0]) == 30


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_that_of_all(rank: int, people: Path, tmp_path: Path) -> None:
    """Bug: a full disk ended all but rank 0 with 5, for which a script of Slurm starts the job again."""
    failing = f"_target_:broken_parts.FailsInOneProcess,_partial_:true,rank:{rank}"
    overrides = ["trainer.devices=1", "plugins=[broken_parts]", f"+callbacks.failing={{{failing}}}"]
    command = arguments(people, tmp_path, *overrides)
    tasks = srun(command, tmp_path / "output", tasks_per_node=1, nodes=3)
    codes = [task.wait(SECONDS) for task in tasks]
    assert [task.stderr.read_text() for task in tasks] == ["error: /full: No space left on device\n"] * 3
    assert codes == [4, 4, 4]
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()


def test_an_error_of_the_first_process_after_training_is_that_of_all(people: Path, tmp_path: Path) -> None:
    """Bug: the others waited for the next stage, and ended with 5."""
    blocking = "+callbacks.blocking={_target_:broken_parts.BlocksTheResult,_partial_:true}"
    command = arguments(people, tmp_path, "trainer.devices=1", "plugins=[broken_parts]", blocking)
    tasks = srun(command, tmp_path / "output", tasks_per_node=1)
    codes = [task.wait(SECONDS) for task in tasks]
    messages = {task.stderr.read_text() for task in tasks}
    assert messages == {f"error: {tmp_path / 'run' / 'finetune' / 'result.json.tmp'}: Is a directory\n"}
    assert codes == [4, 4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.devices=2"],
            "error: trainer.devices=2: srun has started 1 process on each of 2 hosts",
        ),
        (["-m", "trainer.devices=1", "seed=0,1"], "error: --multirun: not below srun;"),
        (["trainer.devices=1", "data.dev=gone.tsv"], "gone.tsv"),
    ],
)
def test_what_is_wrong_ends_all_processes_with_one_line(
    overrides: list[str], message: str, people: Path, tmp_path: Path
) -> None:
    tasks = srun(arguments(people, tmp_path, *overrides), tmp_path / "output", tasks_per_node=1)
    assert [task.wait(SECONDS) for task in tasks] == [2, 2]
    first, second = (task.stderr.read_text() for task in tasks)
    assert message in first
    assert (first.count("\n"), second) == (1, "")
    assert not (tmp_path / "run").exists()
