"""SIGKILL at any moment: the same command goes on, and ends as if nothing had happened."""

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from program import Program, leftovers, outcome, saved_step, steps_taken, unfinished

from birthplace_lm.runs import checkpoint

EVERY = 3  # optimizer steps between checkpoints
VARIANTS = {
    "plain": [],
    "accumulated": ["trainer.accumulate_grad_batches=3", "stages.pretrain.batch_size=2"],
    "synthesizer": ["attention=synthesizer", "optimizer=adamw"],
    "workers": ["stages.pretrain.num_workers=2", "stages.finetune.num_workers=2"],
}


@pytest.mark.parametrize(
    "variant",
    [
        "plain",
        "workers",
        *(pytest.param(v, marks=pytest.mark.torture) for v in ("accumulated", "synthesizer")),
    ],
)
def test_killed_at_any_moment(
    variant: str, tiny: list[str], tmp_path: Path, amount: Any, record: Any
) -> None:
    arguments = [
        *tiny, "model.dropout=0.1", f"checkpoint.every_n_steps={EVERY}", "stages.pretrain.max_epochs=6",
        "stages.finetune.max_epochs=5", *VARIANTS[variant],
    ]  # fmt: skip
    whole = Run(arguments, tmp_path / "whole")
    assert whole.start().wait() == 0  # the first waits for the server
    shutil.rmtree(whole.root)
    began = time.monotonic()
    assert whole.start().wait() == 0
    seconds = time.monotonic() - began
    expected = outcome(whole.run)

    moments = random.Random(variant)
    kills: Counter[str] = Counter()
    groups, runs, lost = [], 0, 0
    while kills.total() < amount(4, 250):
        runs += 1
        killed = Run(arguments, tmp_path / str(runs))
        while True:
            program = killed.start()
            if kills.total() < amount(4, 250) and program.running(moments.uniform(0, seconds)):
                program.send(9)
            code = program.wait()
            killed.check_where_it_went_on()
            if code == 0:
                break
            assert code == 137, program.stderr.read_text()
            groups.append(program.pid)
            kills[killed.check_after_kill(program.pid)] += 1
            lost = max(lost, killed.lost)
        assert outcome(killed.run) == expected
        killed.check_at_the_end()
        shutil.rmtree(killed.root)
    for group in groups:
        wait_until_gone(group)
    where = ", ".join(f"{count} in {name}" for name, count in kills.most_common())
    record(
        f"SIGKILL, {variant}", f"{kills.total()} ({where}), {runs} runs identical, {lost} steps lost at most"
    )


class Run:
    """One run directory, through all its interruptions."""

    def __init__(self, arguments: list[str], root: Path) -> None:
        self.root, self.run = root, root / "run"
        self.output = root.with_name(root.name + "-output")
        self.arguments = [*arguments, f"runs_root={self.root}", f"run_dir={self.run}"]
        self.saved: dict[str, int] = {}  # the step of the newest checkpoint of each stage when it was killed
        self.lost = 0
        self.checked = 0  # starts of stages
        self._read = 0  # of the log

    def start(self) -> Program:
        return Program(self.arguments, self.output)

    def check_where_it_went_on(self) -> None:
        log = (self.run / "log.txt").read_text() if (self.run / "log.txt").exists() else ""
        new, self._read = log[self._read :], len(log)
        resumed = {stage: int(step) for stage, step in re.findall(r"(\w+): resuming after step (\d+)", new)}
        for stage in re.findall(r"(\w+): \d+ parameters", new):
            assert resumed.get(stage, 0) == self.saved.get(stage, 0)
            self.checked += 1

    def check_after_kill(self, pid: int) -> str:
        """Where it was killed."""
        self.saved, self.lost = {}, 0
        for stage, folder in unfinished(self.root, self.run).items():
            self.saved[stage] = saved_step(folder)
            self.lost = steps_taken(folder, stage) - self.saved[stage]
            assert self.lost <= EVERY
        if not (self.run / "status.json").exists():
            return "start-up"
        status = json.loads((self.run / "status.json").read_text())
        assert status["state"] in ("running", "done")
        with pytest.raises(ProcessLookupError):
            os.kill(status["pid"], 0)
        if status["pid"] != pid:
            return "start-up"
        return "a save" if leftovers(self.root) else str(status["stage"])

    def check_at_the_end(self) -> None:
        assert leftovers(self.root) == []
        assert self.checked >= 2
        for stage in ("pretrain", "finetune"):
            checkpoints = checkpoint.list_checkpoints(self.run / stage)
            assert len(checkpoints) >= 2
            assert all(checkpoint.is_intact(path) for path in checkpoints)


def wait_until_gone(group: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker has outlived its run")


def test_a_second_process_is_refused(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, f"runs_root={tmp_path / 'runs'}", f"run_dir={tmp_path / 'run'}"]
    first = Program([*arguments, "stages.pretrain.max_epochs=1000"], tmp_path / "first")
    while not (tmp_path / "run" / "status.json").exists():
        assert first.running(0.02)
    second = Program([*arguments, "stages.pretrain.max_epochs=1000"], tmp_path / "second")
    assert second.wait() == 2
    message = f"error: {tmp_path / 'run'}: another process is working in it; wait until it ends\n"
    assert second.stderr.read_text() == message
    first.send(9)
    assert first.wait() == 137


def test_killed_while_it_claims_its_folder(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").touch()
    (run / "config.yaml.tmp").write_text(
        "seed"
    )  # not yet under its name, so the folder seemed somebody else's
    program = Program(
        [*tiny, f"runs_root={tmp_path}", f"run_dir={run}", "pretrain=none"], tmp_path / "output"
    )
    assert program.wait() == 0, program.stderr.read_text()
    assert leftovers(run) == []
