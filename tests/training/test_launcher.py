"""Two processes train together: whichever is killed, all are gone, and the same command goes on."""

import itertools
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from program import Program, leftovers, outcome, saved_step

from birthplace_lm.errors import InputError, InternalError, Interrupted
from birthplace_lm.runs import checkpoint
from birthplace_lm.training.distributed import launcher as processes

SECONDS = 30  # until all are gone


@pytest.fixture
def arguments(tiny: list[str]) -> list[str]:
    return [
        *tiny, "pretrain=none", "trainer.devices=2", "trainer.strategy=ddp", "model.dropout=0.1",
        "stages.finetune.max_epochs=15", "stages.finetune.batch_size=1", "checkpoint.every_n_steps=2",
        "stages.finetune.check_val_every_n_epoch=5",
    ]  # fmt: skip


def ranks(run: Path) -> dict[int, int]:
    """The processes that train in this folder: pid by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"birthplace_lm.training.worker" in command and f'"{run}/'.encode() in command:
                environment = (process / "environ").read_bytes().split(b"\0")
                rank = next(int(line[11:]) for line in environment if line.startswith(b"LOCAL_RANK="))
                found[rank] = int(process.name)
        except (OSError, StopIteration):  # it has just ended
            continue
    return found


def test_killed_at_any_moment(arguments: list[str], tmp_path: Path, amount: Any, record: Any) -> None:
    whole = tmp_path / "whole"
    program = Program([*arguments, f"runs_root={whole}", f"run_dir={whole / 'run'}"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    expected = outcome(whole / "run")

    moments = random.Random(0)
    victims = itertools.islice(itertools.cycle([1, "parent", 0, "signal"]), amount(4, 20))
    kills, runs, longest = 0, 0, 0.0
    victim: Any = next(victims)
    while victim is not None:
        runs += 1
        root, run = tmp_path / str(runs), tmp_path / str(runs) / "run"
        code = -1
        while code != 0:
            program = Program([*arguments, f"runs_root={root}", f"run_dir={run}"], tmp_path / "output")
            if victim is None or not await_moment(program, run, moments):
                code = program.wait()
                assert code == 0, program.stderr.read_text()
                break
            ended = time.monotonic()
            due = strike(program, run, victim)
            code = program.wait(SECONDS)
            while ranks(run):
                assert time.monotonic() - ended < SECONDS
                time.sleep(0.02)
            longest = max(longest, time.monotonic() - ended)
            said = program.stderr.read_text()
            assert "Traceback" not in said + program.stdout.read_text()
            if code != 0:  # else it had just finished
                assert code == due, said
                assert said.count("\n") == (0 if victim == "parent" else 1)
                kills += 1
                victim = next(victims, None)
        assert outcome(run) == expected
        assert leftovers(root) == []
    record("two processes", f"{kills} killed, all gone within {longest:.1f} s, {runs} runs identical")


def await_moment(program: Program, run: Path, moments: random.Random) -> bool:
    """Wait until both processes are there, mostly until they have saved; False if it ends before."""
    while program.running(0.05):
        if len(ranks(run)) == 2:
            break
    before = saved_step(run / "finetune")
    if moments.random() < 0.2:
        return program.running(moments.uniform(0, 5))
    while program.running(0.02):
        if saved_step(run / "finetune") > before:
            return program.running(moments.uniform(0, 0.2))
    return False


def strike(program: Program, run: Path, victim: Any) -> int:
    """Kill or signal one of the three; the exit code that is due."""
    if victim == "signal":
        program.send(signal.SIGTERM)
        return 143
    if victim == "parent":
        program.send(signal.SIGKILL)
    elif victim in (found := ranks(run)):
        os.kill(found[victim], signal.SIGKILL)
    return 137


def test_one_that_dies_is_noticed_while_the_first_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once only the first was asked, as long as it ran."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    waiting = subprocess.Popen(["sleep", "60"], text=True)
    dead = subprocess.Popen(["sh", "-c", "kill -9 $$"], text=True)
    try:
        assert processes._wait([waiting, dead]) == [0, -signal.SIGKILL]
    finally:
        waiting.kill()
        waiting.wait()


@pytest.mark.parametrize(
    ("codes", "kind", "says"),
    [
        ([0, -signal.SIGABRT], InternalError, "finetune: process 1 crashed with SIGABRT: so it was"),
        ([-signal.SIGKILL, 1], Interrupted, "SIGKILL in process 0 of finetune"),
        ([-signal.SIGSEGV, 2], InputError, "so it was"),
        ([143, 143], Interrupted, "SIGTERM"),
    ],
)
def test_a_crash_is_no_signal_to_stop(codes: list[int], kind: type, says: str) -> None:
    error = processes._error(codes, ["error: so it was\n", "so it was\n"], "finetune")
    assert type(error) is kind
    assert says in str(error)


def test_a_spread_model_goes_on_and_is_one_file(arguments: list[str], tmp_path: Path) -> None:
    """FSDP2: stopped and started again it ends with the same weights, and one process can use them."""
    sharded = [*arguments, "trainer.strategy=fsdp2"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    program = Program([*sharded, f"runs_root={tmp_path}", f"run_dir={whole}"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    program = Program([*sharded, f"runs_root={tmp_path}", f"run_dir={run}"], tmp_path / "output")
    while program.running(0.05) and saved_step(run / "finetune") < 4:
        pass
    program.send(signal.SIGTERM)
    assert program.wait() == 143
    program = Program([*sharded, f"runs_root={tmp_path}", f"run_dir={run}"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    assert outcome(run) == outcome(whole)

    file = checkpoint.list_checkpoints(run / "finetune")[0]
    program = Program(
        [*arguments, "trainer.devices=1", "trainer.strategy=auto", f"init_from={file}",
         f"run_dir={tmp_path / 'one'}", "trainer.max_epochs=1"],
        tmp_path / "output",
    )  # fmt: skip
    assert program.wait() == 0, program.stderr.read_text()
