"""Sweeps that are killed, that hold a bad job, or that are not valid."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from omegaconf import OmegaConf
from program import SEARCH, TRAIN, Program, leftovers, outcome
from stage import METRICS

from birthplace_lm.cli import sweep as validation
from birthplace_lm.cli.app import options_first
from birthplace_lm.cli.search import check_maximises
from birthplace_lm.errors import InputError, InternalError
from birthplace_lm.runs import checkpoint


@pytest.fixture(scope="module")
def seeds(amount: Any) -> int:
    return int(amount(2, 6))


@pytest.fixture(scope="module")
def sweep(people: Path, seeds: int) -> list[str]:
    return [
        "-m", "pretrain=none,span_corruption", f"seed=range({seeds})", "model=tiny", "model.n_layer=1",
        f"data.root={people}", "stages.pretrain.max_epochs=2", "stages.pretrain.batch_size=10",
        "stages.finetune.max_epochs=2", "stages.finetune.batch_size=5",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(sweep: list[str], seeds: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An undisturbed sweep of two jobs a seed, and the seconds it took."""
    root = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    program = Program([*sweep, f"runs_root={root}"], root / "output")
    assert program.wait() == 0, program.stderr.read_text()
    assert states(program) == ["done"] * 2 * seeds
    return root, time.monotonic() - began


def jobs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/metrics.json"))


def states(program: Program) -> list[str]:
    """The second column of the table."""
    table = program.stdout.read_text().partition("\njob ")[2]
    return re.findall(r"^ *\d+ +(.+?)  ", table, re.MULTILINE)


def done(root: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a finished job has been touched."""
    files = {}
    for path in jobs(root):
        if json.loads((path / "status.json").read_text())["state"] == "done":
            stat = (path / "metrics.json").stat()
            files[path.name] = stat.st_ino, stat.st_mtime_ns
    return files


def test_killed_at_any_moment(
    sweep: list[str], seeds: int, whole: tuple[Path, float], tmp_path: Path, amount: Any, record: Any
) -> None:
    count = 2 * seeds
    root, output = tmp_path / "runs", tmp_path / "output"
    moments = random.Random(0)
    kills = 0
    finished: dict[str, Any] = {}
    while kills < amount(1, 10) and len(finished) < count - 2:  # one more is to end before the signal
        program = Program([*sweep, f"runs_root={root}"], output)
        if not program.running(moments.uniform(0, whole[1] / 4)):
            break
        program.send(9)
        assert program.wait() == 137
        kills += 1
        assert finished.items() <= done(root).items()
        finished = done(root)

    before = len(finished)
    program = Program([*sweep, f"runs_root={root}"], output)
    while program.running(0.01) and len(done(root)) < min(before + 1, count - 1):
        pass
    program.send(signal.SIGTERM)
    code = program.wait()
    assert finished.items() <= done(root).items()
    finished = done(root)
    if code != 0:
        assert code == 143
        shown = states(program)
        assert shown.count("done before") == before
        assert shown.count("done") == len(finished) - before
        assert shown.count("stopped") == 1
        launched = re.findall(r"\[HYDRA\]\s+#(\d+) :", program.stdout.read_text())
        assert launched == [str(number) for number in range(shown.index("stopped") + 1)]
        assert shown.count("not started") + shown.count("stopped before") == count - 1 - len(finished)
        messages = program.stderr.read_text()
        assert re.fullmatch(r"interrupted by SIGTERM .*; run the same command to resume\n", messages)

    program = Program([*sweep, f"runs_root={root}"], output)
    assert program.wait() == 0, program.stderr.read_text()
    assert states(program).count("done before") == len(finished)
    assert finished.items() <= done(root).items()
    assert leftovers(root) == []
    for one, other in zip(jobs(whole[0]), jobs(root), strict=True):
        assert one.name == other.name
        assert outcome(one) == outcome(other)

    finished = done(root)
    began = time.monotonic()
    program = Program(
        [*(a for a in sweep if not a.startswith("seed=")), "seed=1", f"runs_root={root}"], output
    )
    assert program.wait() == 0
    each = (time.monotonic() - began) / 2
    assert states(program) == ["done before"] * 2
    assert done(root) == finished
    record(
        f"sweep of {count} jobs",
        f"{kills} SIGKILLs and a SIGTERM, results identical, {each:.2f} s a finished job",
    )


def test_a_failing_job_leaves_the_others(
    sweep: list[str], seeds: int, whole: tuple[Path, float], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    damaged, locked = (root / name for name in (jobs(whole[0])[0].name, jobs(whole[0])[seeds].name))
    shutil.copytree(whole[0] / damaged.name, damaged, symlinks=True)
    for name in ("metrics.json", "status.json", "finetune/result.json"):
        (damaged / name).unlink()
    for path in checkpoint.list_checkpoints(damaged / "finetune"):
        path.write_bytes(path.read_bytes()[:-1])
    locked.mkdir()
    with (locked / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        program = Program([*sweep, f"runs_root={root}"], tmp_path / "output")
        assert program.wait() == 1
    assert len(done(root)) == 2 * seeds - 2
    shown = states(program)
    assert sorted(shown) == ["done"] * (2 * seeds - 2) + ["failed (2)", "failed (4)"]
    assert re.search(rf"^ *\d+ +failed \(4\) .* {damaged}$", program.stdout.read_text(), re.MULTILINE)
    assert re.search(rf"^ *\d+ +failed \(2\) .* {locked}$", program.stdout.read_text(), re.MULTILINE)
    assert re.fullmatch(r"(error: .*\n){2}", program.stderr.read_text())
    status = json.loads((damaged / "status.json").read_text())
    assert status["state"] == "failed"
    assert "all checkpoints are damaged" in status["error"]
    assert "Traceback" in (damaged / "log.txt").read_text()
    assert [path.name for path in locked.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["stages.finetune.learning_rate=7,1e-3"], "stages.finetune.learning_rate=7.0: must be"),
        (["stages.finetune.learning_rate=1e-3,7"], "stages.finetune.learning_rate=7.0: must be"),
        (["attention=vanila,vanilla"], "vanila"),
        (["seed=1,2", "run_dir=${runs_root}/one"], "run_dir"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: not installed; pip install hydra-optuna-sweeper"),
        (["stages.pretrain.learning_rate=interval(0,1)"], "does not support sweep type : INTERVAL_SWEEP"),
        (["hydra.launcher=joblib"], "hydra.launcher=joblib: is a group; write hydra/launcher=joblib"),
    ],
)
def test_is_refused_before_anything_is_created(
    values: list[str], reason: str, tiny: list[str], tmp_path: Path
) -> None:
    program = Program(["-m", *tiny, f"runs_root={tmp_path / 'runs'}", *values], tmp_path / "output")
    assert program.wait() == 2
    assert re.fullmatch(f"error: .*{reason}.*\n", program.stderr.read_text())
    assert program.stdout.read_text() == ""
    assert not (tmp_path / "runs").exists()


def test_an_exception_of_a_part_is_no_mistake_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a TypeError of a user's optimizer was reported as a group without a name, with code 2."""
    hydra = {group: {"_target_": f"hydra.Basic{group.title()}"} for group in ("sweeper", "launcher")}
    monkeypatch.setattr(validation, "GlobalHydra", mock.MagicMock())
    monkeypatch.setattr(validation, "_expand", lambda *args: [["seed=0", "debug=smoke"]])
    monkeypatch.setattr(validation, "_composed", lambda *args: OmegaConf.create({"traceback": True}))
    monkeypatch.setattr(validation, "_checked_job", mock.Mock(side_effect=TypeError("no 'momentums'")))
    with pytest.raises(validation.SweepRejected) as rejected:
        validation.ValidateSweep().on_multirun_start(OmegaConf.create({"hydra": hydra}))
    assert rejected.value.show_traceback
    assert type(rejected.value.error) is InternalError
    assert str(rejected.value.error).startswith("TypeError: no 'momentums'; traceback=true shows")


@pytest.mark.parametrize(
    ("paths", "run_dirs", "folder"),
    [
        (["my runs/a", "my runs/b"], [None, None], "'my runs'"),
        (["own/a", "own/b"], ["own/a", "own/b"], "own"),
        (["own/a", "other/b"], ["own/a", "other/b"], None),
    ],
)
def test_the_command_for_the_curves_finds_the_runs(
    paths: list[str], run_dirs: list[Any], folder: str | None
) -> None:
    """Bug: it named `runs_root` where the jobs have a `run_dir`, and no path was quoted."""
    jobs: list[Any] = []
    for path, run_dir in zip(paths, run_dirs, strict=True):
        config = SimpleNamespace(run_dir=run_dir, runs_root=str(Path(path).parent), logger=["tensorboard"])
        directory = SimpleNamespace(path=Path(path), config=config, metrics=METRICS)
        jobs.append(SimpleNamespace(directory=directory))
    facts = validation.common_facts(jobs)
    assert facts.get("curves") == (folder and f"birthplace-lm tensorboard {folder}")


def test_a_sweep_cannot_write_into_a_file(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = Program(["-m", *tiny, f"runs_root={tmp_path / 'file'}", "seed=0,1"], tmp_path / "output")
    assert program.wait() == 1
    assert "file: File exists; a sweep writes into hydra.sweep.dir" in program.stderr.read_text()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("seed=1 --info defaults-tree", "--info defaults-tree seed=1"),
        ("seed=1 --info", "--info all seed=1"),
        ("--info seed=1", "--info all seed=1"),
        ("-i config -m seed=0,1", "-i config -m seed=0,1"),
        ("seed=1 --cfg job model=tiny --resolve", "--cfg job --resolve seed=1 model=tiny"),
    ],
)
def test_overrides_stand_behind_options(typed: str, read: str) -> None:
    assert options_first(typed.split()) == read.split()


def test_options_may_stand_between_overrides(tiny: list[str], tmp_path: Path) -> None:
    """`a=1 -m b=2` printed the usage of argparse."""
    root = f"runs_root={tmp_path}/runs"
    program = Program([*tiny, "dry_run=true", "-m", root, "seed=1,2", "precision=auto"], tmp_path / "output")
    assert program.wait() == 0, program.stderr.read_text()
    assert program.stdout.read_text().count("precision=auto: ") == 2
    assert states(program) == ["not started"] * 2


def test_paths_are_relative_to_where_the_command_was_typed(tiny: list[str], tmp_path: Path) -> None:
    """With `hydra.job.chdir=true` the runs went elsewhere, and the table said "not started"."""
    sweep = ["-m", *tiny, "pretrain=none", "runs_root=runs", "seed=0,1", "hydra.job.chdir=true"]
    program = Program(sweep, tmp_path / "output", directory=tmp_path)
    assert program.wait() == 0, program.stderr.read_text()
    assert states(program) == ["done", "done"]
    logs = [run / "log.txt" for run in jobs(tmp_path / "runs")]
    typed = sorted(re.findall(r"DEBUG overrides: model=tiny .* (seed=.)", log.read_text()) for log in logs)
    assert typed == [["seed=0"], ["seed=1"]]


class Direction(Enum):  # of Optuna
    minimize = 1
    maximize = 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direction": Direction.minimize}, "direction=minimize: looks"),
        ({"direction": Direction.maximize}, None),
        ({"direction": ["maximize", "minimize"]}, "direction="),
        ({"optim": {"maximize": False, "budget": 80}}, "optim.maximize=false: looks"),
        ({"ax_config": {"experiment": {"minimize": True}}}, "ax_config.experiment.minimize=true: looks"),
        ({"ax_config": {"experiment": {"minimize": False}, "early_stop": {"minimize": False}}}, None),
        ({"_target_": "own.Search"}, None),
    ],
)
def test_a_search_for_the_smallest_exact_match_is_refused(settings: Any, message: str | None) -> None:
    """Bug: the sweepers minimise by default, so they looked for the worst model."""
    sweeper = OmegaConf.create(settings)
    if message is None:
        check_maximises(sweeper)
    else:
        with pytest.raises(InputError, match=f"^hydra.sweeper.{message}"):
            check_maximises(sweeper)


def test_a_search_that_suggests_the_same_twice_gets_numbers(tiny: list[str], tmp_path: Path) -> None:
    """As Optuna does: the second job failed, "another process is working in it"; a dry run had no result."""
    plugin = tmp_path / "hydra_plugins" / "search.py"
    plugin.parent.mkdir()
    plugin.write_text(SEARCH)
    arguments = ["-m", *tiny, f"runs_root={tmp_path / 'runs'}", "hydra/sweeper=search"]
    environment = {"PYTHONPATH": str(tmp_path)}
    program = Program([*arguments, "dry_run=true"], tmp_path / "output", environment)
    assert program.wait() == 2
    assert program.stderr.read_text() == (
        "error: hydra.sweeper.direction=minimize: looks for the smallest exact match; give"
        " hydra.sweeper.direction=maximize\n"
    )
    arguments.append("hydra.sweeper.direction=maximize")
    program = Program([*arguments, "dry_run=true"], tmp_path / "output", environment)
    assert program.wait() == 0, program.stderr.read_text()
    assert "\nresults 0.0 0.0" in program.stdout.read_text()

    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, str(TRAIN), *arguments, *side_by_side],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "\nresults 0." in done.stdout
    assert len(jobs(tmp_path / "runs")) == 1
