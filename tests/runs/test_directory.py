"""Names of run directories, and whose they are."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from stage import METRICS, quick, run

from birthplace_lm.errors import InputError
from birthplace_lm.runs.directory import RunDirectory, check_run_dir
from birthplace_lm.runs.identity import pretraining_directory, run_directory
from birthplace_lm.runs.lock import run_lock
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
