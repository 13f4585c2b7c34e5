"""Sweeps whose jobs run side by side in processes that a launcher starts."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from program import SEARCH, TRAIN, Program, leftovers, outcome

from birthplace_lm.cli.gpu_slots import claim_gpu
from birthplace_lm.cli.sweep import _is_descendant
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.runs.identity import run_directory, with_inputs


@pytest.fixture(scope="module")
def alone(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that no sweep has started."""
    root = tmp_path_factory.mktemp("alone")
    program = start(root, "basic", [*two_processes(people), "seed=1"])
    assert program.wait(120) == 0, program.communicate()
    (run,) = runs(root)
    return run


def two_processes(people: Path) -> list[str]:
    return [*quick(people), "pretrain=none", "trainer=ddp", "trainer.accelerator=cpu"]


def quick(people: Path) -> list[str]:
    return [
        "model=tiny", "model.n_layer=1", f"data.root={people}", "stages.pretrain.max_epochs=2",
        "stages.pretrain.batch_size=10", "stages.finetune.max_epochs=2", "stages.finetune.batch_size=5",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
    ]  # fmt: skip


def start(root: Path, launcher: str, arguments: list[str], **options: Any) -> "subprocess.Popen[str]":
    overrides = [*arguments, f"runs_root={root}", f"hydra/launcher={launcher}"]
    if launcher == "joblib":
        overrides.append("hydra.launcher.n_jobs=2")
    return subprocess.Popen(
        [sys.executable, str(TRAIN), "-m", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def states(table: str) -> list[str]:
    """The second column."""
    return re.findall(r"^ *\d+ +(.+?)  ", table.partition("\njob ")[2] or table, re.MULTILINE)


def runs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/metrics.json"))


@pytest.mark.torture
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_failed_job_of_several_processes_leaves_the_next_right(
    launcher: str, alone: Path, people: Path, tmp_path: Path
) -> None:
    """With Lightning's own launcher the second trained on mixed configurations, and was called done."""
    arguments = two_processes(people)
    root = tmp_path / "runs"
    plan = start(root, "basic", [*arguments, "seed=0,1", "dry_run=true"]).communicate()[0]
    first = Path(re.findall(r"^run +(.*), to do$", plan, re.MULTILINE)[0])
    first.mkdir(parents=True)
    with (first / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        sweep = start(root, launcher, [*arguments, "seed=0,1"])
        out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 1, out + err
    assert states(out) == ["failed (2)", "done"]
    assert "another process is working in it" in out + err
    assert "Traceback" not in out + err
    assert [path.name for path in runs(root)] == [alone.name]
    assert outcome(runs(root)[0]) == outcome(alone)
    assert leftovers(root) == []


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    program = Program(["-m", *longer(people), f"runs_root={root}"], root / "output")
    assert program.wait(200) == 0, program.stderr.read_text()
    return root


def longer(people: Path) -> list[str]:
    return [
        *quick(people),
        "pretrain=none",
        "attention=vanilla,synthesizer",
        "stages.finetune.max_epochs=40",
    ]  # 120 steps


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.torture)])
def test_a_signal_stops_all_jobs_and_the_same_command_goes_on(
    launcher: str, whole: Path, people: Path, tmp_path: Path
) -> None:
    arguments = [*longer(people), "checkpoint.every_n_steps=5"]
    root = tmp_path / "runs"
    sweep = start(root, launcher, arguments)
    while sweep.poll() is None and len({file.parent for file in root.glob("*/finetune/step-*.ckpt")}) < 2:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 143, out + err
    assert set(states(out)) <= {"stopped", "not started", "done"}
    assert "stopped" in states(out)

    sweep = start(root, launcher, arguments)
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, out + err
    assert [outcome(run) for run in runs(root)] == [outcome(run) for run in runs(whole)]
    assert len(runs(root)) == 2


def test_a_failed_job_leaves_the_batches_after_it(people: Path, tmp_path: Path) -> None:
    """Bug: they did not start, the job was "not started", and Hydra printed a second line about it."""
    arguments = [*longer(people)[:-2], "stages.finetune.max_epochs=1", "seed=0,1"]
    root = tmp_path / "runs"
    config = compose([*arguments[:-1], "seed=0", f"runs_root={root}"])
    corpus = read_corpus(config.data, config.model.block_size)
    first = run_directory(with_inputs(config, corpus.sha256))
    first.mkdir(parents=True)
    with (first / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        sweep = start(root, "joblib", [*arguments, "hydra.sweeper.max_batch_size=1"])
        out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 1, out + err
    assert states(out) == ["failed (2)", "done"]
    assert re.fullmatch(r"error: .*another process is working in it.*\n", err)


def test_only_processes_of_the_sweep_are_its_jobs() -> None:
    """Bug: Ctrl-C on a sweep stopped the run of another terminal in one of its folders."""
    child = subprocess.Popen(["bash", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    detach = "sleep 60 > /dev/null 2>&1 & echo $!"
    detached = subprocess.run(["bash", "-c", detach], capture_output=True, text=True)
    assert child.stdout is not None
    grandchild, stranger = int(child.stdout.readline()), int(detached.stdout)
    try:
        assert _is_descendant(child.pid)
        assert _is_descendant(grandchild)
        assert not _is_descendant(stranger)
        assert not _is_descendant(os.getppid())
        assert not _is_descendant(2**22 + 1)  # no process
    finally:
        for pid in (grandchild, stranger):
            os.kill(pid, signal.SIGKILL)
        child.wait()


def test_all_jobs_are_checked_before_the_first_starts(people: Path, tmp_path: Path) -> None:
    """Bug: a value that only the schedule refuses ended its job in its own process; the others trained."""
    arguments = [*longer(people)[:-2], "stages.finetune.schedule.warmup_fraction=0.02,1.5"]
    program = Program(["-m", *arguments, f"runs_root={tmp_path / 'runs'}", "hydra/launcher=joblib"], tmp_path)
    assert program.wait(120) == 2
    assert "warmup_fraction=1.5" in program.stderr.read_text()
    assert not [*tmp_path.glob("runs/*/config.yaml")]


@pytest.mark.torture
def test_a_signal_stops_the_jobs_of_a_search(people: Path, tmp_path: Path) -> None:
    """Bug: with a sweeper that searches, SIGTERM had no effect until the jobs had ended."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "search.py").write_text(SEARCH)
    arguments = [*longer(people)[:-2], "stages.finetune.max_epochs=2000"]
    arguments += ["hydra/sweeper=search", "hydra.sweeper.direction=maximize"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    root = tmp_path / "runs"
    sweep = start(root, "joblib", arguments, env=environment)
    while sweep.poll() is None and not [*root.glob("*/finetune/step-*.ckpt")]:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 143, out + err
    (status,) = root.glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "preempted"


@pytest.mark.parametrize("moment", [0.3, *(pytest.param(m, marks=pytest.mark.torture) for m in (0.0, 1.0))])
def test_ctrl_c_at_the_start_prints_no_traceback(moment: float, people: Path, tmp_path: Path) -> None:
    """It goes to the processes of the launcher too, which ended in their imports."""
    root = tmp_path / "runs"
    sweep = start(root, "joblib", longer(people), start_new_session=True)
    while sweep.poll() is None and not Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text():
        time.sleep(0.01)
    time.sleep(moment)
    os.killpg(sweep.pid, signal.SIGINT)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert "press Ctrl-C again" in err


def test_jobs_are_spread_over_gpus(tmp_path: Path) -> None:
    """Four processes and three GPUs: one GPU has two of them."""
    take = "import os; from birthplace_lm.cli.gpu_slots import claim_gpu; lock = claim_gpu()\n"
    take += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,2,5"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", take],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    lines = [job.stdout.readline().strip() for job in jobs if job.stdout]
    for job in jobs:
        job.communicate("\n")
    assert sorted({*lines}) == ["0", "2", "5"]
    assert len(lines) == 4


def test_one_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert claim_gpu() is None
