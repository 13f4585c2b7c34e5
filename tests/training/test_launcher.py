"""Two processes train together: whichever is killed, all are gone, and the same command goes on."""

import itertools
import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from program import Program, leftovers, outcome, saved_step
from stage import plan_of

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import (
    BirthplaceError,
    CheckpointError,
    InputError,
    InternalError,
    Interrupted,
    ProcessLost,
)
from birthplace_lm.runs import checkpoint
from birthplace_lm.training.distributed import launcher

SECONDS = 30  # until all are gone


@pytest.fixture
def arguments(tiny: list[str]) -> list[str]:
    return [
        *tiny, "pretrain=none", "trainer.devices=2", "trainer.strategy=ddp", "model.dropout=0.1",
        "stages.finetune.max_epochs=15", "stages.finetune.batch_size=2", "checkpoint.every_n_steps=2",
        "stages.finetune.check_val_every_n_epoch=5",
    ]  # fmt: skip


def ranks(run: Path) -> dict[int, int]:
    """The processes that train in this folder: pid by rank."""
    processes = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"birthplace_lm.training.worker" in command and f'"{run}/'.encode() in command:
                environment = (process / "environ").read_bytes().split(b"\0")
                rank = next(int(line[11:]) for line in environment if line.startswith(b"LOCAL_RANK="))
                processes[rank] = int(process.name)
        except (OSError, StopIteration):  # it has just ended
            continue
    return processes


def test_killed_at_any_moment(arguments: list[str], tmp_path: Path, amount: Any, record: Any) -> None:
    whole = tmp_path / "whole"
    program = Program([*arguments, f"runs_root={whole}", f"run_dir={whole / 'run'}"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    expected = outcome(whole / "run")

    moments = random.Random(0)
    victims = itertools.islice(itertools.cycle([1, "parent", 0, "signal"]), amount(2, 20))
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
            messages = program.stderr.read_text()
            assert "Traceback" not in messages + program.stdout.read_text()
            if code != 0:  # else it had just finished
                assert code == due, messages
                assert messages.count("\n") == (0 if victim == "parent" else 1)
                if victim != "parent":
                    assert json.loads((run / "status.json").read_text())["state"] == "preempted"
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
    elif victim in (processes := ranks(run)):
        os.kill(processes[victim], signal.SIGKILL)
    return 137


def test_one_that_dies_is_noticed_while_the_first_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once only the first was asked, as long as it ran."""
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.1)
    waiting = subprocess.Popen(["sleep", "60"], text=True)
    dead = subprocess.Popen(["sh", "-c", "kill -9 $$"], text=True)
    try:
        assert launcher._wait([waiting, dead], 60) == [None, -signal.SIGKILL]
    finally:
        waiting.kill()
        waiting.wait()


BAD = InputError("so it was")


@pytest.mark.parametrize(
    ("codes", "errors", "kind", "says"),
    [
        ([None, -signal.SIGABRT], [None, None], InternalError, "finetune: process 1 crashed with SIGABRT"),
        ([1, -signal.SIGABRT], [InternalError("peer"), None], InternalError, "process 1 crashed"),
        (
            [-signal.SIGKILL, 1],
            [None, InternalError("peer")],
            Interrupted,
            "SIGKILL in process 0 of finetune",
        ),
        ([-signal.SIGSEGV, 2], [None, BAD], InputError, "so it was"),
        ([1, 2], [InternalError("peer"), BAD], InputError, "so it was"),
        ([143, 2], [Interrupted(15, "after step 1"), BAD], InputError, "so it was"),
        ([143, 143], [Interrupted(15, "after step 1")] * 2, Interrupted, "SIGTERM after step 1"),
        ([1, None], [None, None], InternalError, "process 0 ended with 1"),
        ([5, 1], [ProcessLost("peer"), InternalError("so it was")], InternalError, "so it was"),
    ],
)
def test_the_cause_is_shown(codes: list[Any], errors: list[Any], kind: type, says: str) -> None:
    """Once it was guessed from the last line of stderr."""
    plan: Any = SimpleNamespace(name="finetune", stop_timeout_seconds=1.0)
    error = launcher._cause(codes, errors, plan)
    assert type(error) is kind
    assert says in str(error)


@pytest.mark.parametrize("error", [BAD, InternalError("a\nb"), Interrupted(15, "after step 1")])
def test_an_error_crosses_processes(error: BirthplaceError) -> None:
    received = BirthplaceError.from_json(error.to_json())
    assert (type(received), str(received), received.exit_code) == (type(error), str(error), error.exit_code)


@pytest.mark.parametrize(
    ("when", "rank"), [("training", 1), pytest.param("rendezvous", 0, marks=pytest.mark.torture)]
)
def test_a_process_that_hangs_is_killed_after_a_signal(
    when: str, rank: int, arguments: list[str], tmp_path: Path
) -> None:
    """Once the run ignored SIGTERM forever."""
    run = tmp_path / "run"
    program = Program(
        [*arguments, f"runs_root={tmp_path}", f"run_dir={run}", "stages.finetune.max_epochs=2000",
         "stages.finetune.check_val_every_n_epoch=100", "stop_timeout_seconds=1"],
        tmp_path / "output",
    )  # fmt: skip
    while program.running(0.02) and (len(ranks(run)) < 2 or (when == "training" and not saved(run))):
        pass
    pids = ranks(run)
    os.kill(pids[rank], signal.SIGSTOP)
    program.running(0.5)
    program.send(signal.SIGTERM)
    assert program.wait(SECONDS) == 143
    message = program.stderr.read_text()
    assert "SIGTERM in finetune, after 1 s in which a process did not stop" in message
    assert message.count("\n") == 1
    assert ranks(run) == {}
    newest = checkpoint.latest_intact(run / "finetune")
    assert (newest is not None) == (when == "training")
    if when == "training":  # the other one waited in a collective
        assert "(most recent call first)" in (run / "log.txt").read_text()


def saved(run: Path) -> bool:
    return saved_step(run / "finetune") > 0


@pytest.mark.parametrize(
    "hook",
    [
        "on_validation_end",
        *(pytest.param(f"on_train_{when}_end", marks=pytest.mark.torture) for when in ("batch", "epoch")),
    ],
)
def test_one_process_that_stops_early_stops_all(hook: str, arguments: list[str], tmp_path: Path) -> None:
    """Bug: the others waited for it until the connection timed out."""
    stops = f"+callbacks.stops={{_target_:broken_parts.StopsInOneProcess,_partial_:true,hook:{hook}}}"
    overrides = ["plugins=[broken_parts]", stops, "stages.finetune.check_val_every_n_epoch=1"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*arguments, *overrides, f"runs_root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    program = Program(command, tmp_path / "output", environment)
    assert program.wait() == 0, program.stderr.read_text()
    assert "finetune ended after step 6 of 90, by callbacks.stops" in program.stdout.read_text()


def test_the_error_of_a_process_is_that_of_the_run(configure: Any, tmp_path: Path) -> None:
    config = configure("trainer.devices=2", "trainer.strategy=ddp")
    corpus = read_corpus(config.data, config.model.block_size)
    plan = plan_of("finetune", config, corpus, tmp_path)
    with pytest.raises(InputError, match=r"gone\.tsv: "):
        launcher.fit_in_processes(replace(plan, data={**plan.data, "train": "gone.tsv"}), None)


def test_a_process_refuses_data_that_changed_after_preflight(configure: Any, tmp_path: Path) -> None:
    """Each process reads the files anew; one that was edited meanwhile was once trained on unnoticed."""
    config = configure()
    plan = plan_of("finetune", config, read_corpus(config.data, config.model.block_size), tmp_path)
    earlier = replace(plan, data_sha256={**plan.data_sha256, "train": "before"})
    with pytest.raises(CheckpointError, match=r"data\.train: the file has changed"):
        launcher.fit_in_processes(earlier, None)
    assert checkpoint.list_checkpoints(tmp_path) == []


@pytest.mark.torture
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
