"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 at any moment: nothing is lost, and the exit code says which it was."""

import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from program import SIGNALS, Program, leftovers, outcome, saved_step, steps_taken, unfinished

from birthplace_lm.runs import signals

STOPPED = (
    r"interrupted by {name} (after step (?P<step>\d+) of (?P<stage>\w+)|before \w+( \w+)?|"
    r"during the evaluation); run the same command to resume\n"
)
AGAIN = "stopping after this step; press Ctrl-C again to stop at once"


@pytest.fixture(scope="module")
def arguments(people: Path) -> list[str]:
    return [
        "model=tiny", "model.n_layer=1", f"data.root={people}", "stages.pretrain.batch_size=10",
        "stages.finetune.batch_size=5", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
        "model.dropout=0.1", "checkpoint.every_n_steps=100", "stages.pretrain.max_epochs=6",
        "stages.finetune.max_epochs=5", "trainer.accumulate_grad_batches=2", "stages.finetune.num_workers=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Any]:
    """How long a run takes, the server's own start left out, and what it leaves."""
    root = tmp_path_factory.mktemp("whole")
    for path in (root / "first", root / "second"):
        began = time.monotonic()
        program = Program([*arguments, f"runs_root={path}", f"run_dir={path / 'run'}"], root)
        assert program.wait() == 0
    return time.monotonic() - began, outcome(path / "run")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signalled_at_any_moment(
    number: signal.Signals,
    arguments: list[str],
    whole: tuple[float, Any],
    tmp_path: Path,
    amount: Any,
    record: Any,
) -> None:
    seconds, expected = whole
    moments = random.Random(int(number))
    ends: Counter[str] = Counter()
    runs, stopped = 0, 0
    while stopped < amount(2, 50):
        runs += 1
        root, run = tmp_path / str(runs), tmp_path / str(runs) / "run"
        code = -1
        while code != 0:
            program = Program([*arguments, f"runs_root={root}", f"run_dir={run}"], tmp_path / "output")
            signalled = stopped < amount(2, 50)
            if signalled:
                await_handlers(program)
                program.running(moments.uniform(0, seconds))
                program.send(number, to_all=moments.random() < 0.5)
            code = program.wait()
            message = program.stderr.read_text()
            assert "Traceback" not in message + program.stdout.read_text()
            if code != 0:
                assert signalled
                assert code == 128 + number, message
                ends[check_stopped(root, run, number, message)] += 1
                stopped += 1
            elif signalled:
                ends["ended first"] += 1
        assert outcome(run) == expected
        assert leftovers(root) == []
        shutil.rmtree(root)
    where = ", ".join(f"{count} {name}" for name, count in ends.most_common())
    record(number.name, f"{ends.total()} ({where}), {runs} runs identical, no step lost")


def await_handlers(program: Program) -> None:
    """Before they are installed a signal kills, as it does any process."""
    while program.running(0) and not program.heeds(SIGNALS[-1]):
        time.sleep(0.001)


def check_stopped(root: Path, run: Path, number: signal.Signals, message: str) -> str:
    """Where it stopped."""
    lines = message.replace(f"\n{AGAIN}\n", "") if number == signal.SIGINT else message
    match = re.fullmatch(STOPPED.format(name=number.name), lines)
    assert match, message
    if (run / "status.json").exists():
        assert json.loads((run / "status.json").read_text())["state"] == "preempted"
    else:
        assert "before" in message
    for stage, folder in unfinished(root, run).items():
        assert saved_step(folder) == steps_taken(folder, stage)
    if match["step"]:
        assert int(match["step"]) == saved_step(
            run / match["stage"] if match["stage"] != "pretrain" else folder
        )
    return f"after a step of {match['stage']}" if match["step"] else match[1]


def test_a_second_ctrl_c_kills(arguments: list[str], tmp_path: Path) -> None:
    program = Program(
        [*arguments, f"runs_root={tmp_path}", f"run_dir={tmp_path / 'run'}"], tmp_path / "output"
    )
    await_handlers(program)
    program.send(signal.SIGINT)
    while AGAIN not in program.stderr.read_text():
        assert program.running(0.001)
    program.send(signal.SIGINT)
    assert program.wait() == 130
    assert program.stderr.read_text() == f"\n{AGAIN}\n"


@pytest.mark.parametrize("_once_more", [False, True])
def test_a_test_leaves_no_handler_behind(_once_more: bool) -> None:
    """Bug: default handlers were not restored, and a pool that was forked later did not end with SIGTERM."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signals.install()
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
