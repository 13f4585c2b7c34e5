"""Names of run directories, and whose they are."""

import json
import multiprocessing
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from stage import METRICS, quick, run

from birthplace_lm.errors import InputError
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.directory import RunDirectory, check_run_dir
from birthplace_lm.runs.find import find_run
from birthplace_lm.runs.identity import pretraining_directory, run_directory
from birthplace_lm.runs.lock import is_locked, run_lock
from birthplace_lm.runs.metrics import METRICS_FILE


@pytest.mark.parametrize(
    "override",
    ["seed=1", "attention=synthesizer", "stages.finetune.learning_rate=1e-3", "trainer.precision=bf16-mixed"],
)
def test_what_changes_the_result_changes_the_directory(configure: Any, override: str) -> None:
    assert run_directory(configure()) != run_directory(configure(override))


@pytest.mark.parametrize(
    "override",
    [
        "resume=never",
        "checkpoint.keep_last=5",
        "stages.pretrain.num_workers=2",
        "trainer.log_every_n_steps=7",
    ],
)
def test_what_does_not_leaves_it(configure: Any, override: str) -> None:
    assert run_directory(configure()) == run_directory(configure(override))


def test_pretrainings_are_shared_by_what_differs_later(configure: Any) -> None:
    shared = pretraining_directory(configure())
    assert pretraining_directory(configure("stages.finetune.max_epochs=9")) == shared
    assert pretraining_directory(configure("stages.pretrain.max_epochs=9")) != shared
    assert pretraining_directory(configure("seed=1")) != shared


def test_what_is_switched_off_does_not_count(configure: Any) -> None:
    one = configure("pretrain=none", "spans=random")
    other = configure("pretrain=none", "stages.pretrain.batch_size=3")
    assert run_directory(one) == run_directory(other)


def test_refuses_a_folder_of_something_else(configure: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="contains other files"):
        check_run_dir(folder, configure())
    assert (folder / "thesis.tex").read_text() == "x"


def test_refuses_a_second_process(configure: Any, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", configure())
    with run.open_for_run(), multiprocessing.get_context("fork").Pool(1) as pool:
        assert "another process" in pool.apply(_try_to_lock, (tmp_path / "run",))
        pool.close()
        pool.join()  # not terminated: another test may have left us the signals' handlers, which it inherits
    with run_lock(tmp_path / "run", wait=False):
        pass


def _try_to_lock(path: Path) -> str:
    try:
        with run_lock(path, wait=False):
            return "locked"
    except InputError as error:
        return str(error)


def test_two_threads_exclude_each_other(tmp_path: Path) -> None:
    """Bug: both got the lock where they asked at the same moment; the system gives it to a process."""
    inside, together = [0], list[int]()
    refused: list[bool] = []
    start = threading.Barrier(2)

    def enter(wait: bool) -> None:
        start.wait()
        try:
            with run_lock(tmp_path / "run", wait):
                inside[0] += 1
                together.append(inside[0])
                time.sleep(0.001)
                inside[0] -= 1
        except InputError:
            refused.append(wait)

    for _ in range(50):
        threads = [threading.Thread(target=enter, args=(False,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(together) == {1}
    assert len(together) + len(refused) == 100
    with run_lock(tmp_path / "run", wait=False):
        assert is_locked(tmp_path / "run")
    assert not is_locked(tmp_path / "run")


def test_overwrite_does_not_remove_where_the_run_starts(configure: Any, tmp_path: Path) -> None:
    """Bug: the folder was cleared, and then the checkpoint was missing."""
    folder = tmp_path / "own"
    own = ("pretrain=none", f"run_dir={folder}")
    run(configure(*own))
    files = sorted(folder.rglob("*"))
    last = checkpoint.list_checkpoints(folder / "finetune")[0]
    with pytest.raises(InputError, match=f"overwrite=True: would remove resume={last}"):
        find_run(configure(*own, "overwrite=true", f"resume={last}"))
    assert sorted(folder.rglob("*")) == files


@pytest.mark.parametrize("root", ["runs", "runs/all"])
def test_a_run_directory_does_not_hold_the_other_runs(root: str, configure: Any, tmp_path: Path) -> None:
    """Bug: run_dir=runs was taken, and overwrite=true then removed every other run."""

    def changed(run_dir: str, runs_root: str) -> DictConfig:
        return DictConfig(OmegaConf.merge(configure(), {"run_dir": run_dir, "runs_root": runs_root}))

    with pytest.raises(InputError, match=r"holds the other runs, runs_root=.*; give a folder of its own"):
        find_run(changed(f"{tmp_path}/runs", f"{tmp_path}/{root}"))
    find_run(changed(f"{tmp_path}/runs/mine", f"{tmp_path}/runs"))


def test_overwrite_clears_the_folder(configure: Any, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", configure()).open_for_run() as run:
        (run.path / "finetune").mkdir()
        METRICS.write(run.path / METRICS_FILE)
        run.mark_ended("done")
        assert run.finished
    with RunDirectory(tmp_path / "run", configure("overwrite=true")).open_for_run() as run:
        assert not run.finished
        assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "lock", "log.txt"]


def test_the_folder_stays_ours_while_it_is_cleared(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early that is killed: what is left without its config.yaml is refused."""
    with RunDirectory(tmp_path / "run", configure()).open_for_run() as run:
        for name in ("finetune", "predictions", "a"):
            (run.path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with (
            pytest.raises(KeyboardInterrupt),
            RunDirectory(tmp_path / "run", configure("overwrite=true")).open_for_run(),
        ):
            pass
    with RunDirectory(tmp_path / "run", configure("overwrite=true")).open_for_run() as run:
        assert not (run.path / "finetune").exists()


def test_equal_jobs_of_a_sweep_wait_and_share_the_result(people: Path, tmp_path: Path) -> None:
    """Optuna with joblib suggested the same values twice, and the sweep failed: issue 11, point 13."""
    config = quick(people, tmp_path, f"run_dir={tmp_path / 'run'}")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(run, [(config, True), (config, True)], chunksize=1)
        pool.close()
        pool.join()
    assert first == second  # to the microsecond: one of them has trained
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
