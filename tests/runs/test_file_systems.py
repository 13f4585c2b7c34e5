"""Whole runs on file systems without symbolic links, file locks or sync of folders: issue 11, point 7."""

import errno
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from stage import quick, run, sampled

import birthplace_lm
from birthplace_lm.analysis.report.collect import find_runs
from birthplace_lm.analysis.report.curves import learning_curve
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs import atomic_files
from birthplace_lm.runs.directory import RunDirectory, stage_directory
from birthplace_lm.runs.lock import is_locked, run_lock

NUMBERS = [errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EPERM]
Lacking = Callable[..., None]


@pytest.fixture(autouse=True)
def _local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The temporary folder of the host, on a file system that has locks."""
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    atomic_files.warn_once.cache_clear()
    yield
    atomic_files.warn_once.cache_clear()


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lacking:
    """Let these calls fail with an error number for everything in `tmp_path` but `local`."""
    import fcntl

    remote, local = str(tmp_path), str(tmp_path / "local")

    def fail(module: Any, name: str, number: int, only_folders: bool = False) -> None:
        real = getattr(module, name)

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            path = os.fspath(rest[0]) if name == "symlink" else os.readlink(f"/proc/self/fd/{first}")
            is_remote = path.startswith(remote) and not path.startswith(local)
            if is_remote and (os.path.isdir(path) or not only_folders):
                raise OSError(number, os.strerror(number))
            return real(first, *rest, **options)

        monkeypatch.setattr(module, name, call)

    def fail_all(number: int, *names: str) -> None:
        if "symlink" in names:
            fail(os, "symlink", number)
        if "lock" in names:
            fail(fcntl, "lockf", number)
            fail(os, "lockf", number)
        if "fsync" in names or "fsync of folders" in names:
            fail(os, "fsync", number, only_folders="fsync of folders" in names)

    return fail_all


@pytest.fixture(scope="module")
def expected(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """Weights and learning curve of a run on a complete file system."""
    root = tmp_path_factory.mktemp("complete")
    metrics = run(quick(people, root, f"run_dir={root / 'run'}"))
    return metrics["weights_sha256"], learning_curve(find_runs(root / "run")[0])


@pytest.mark.parametrize(
    ("number", "names"),
    [
        *sampled(NUMBERS, [("symlink", "lock", "fsync of folders")]),
        (errno.EINVAL, ("fsync",)),
    ],
)
def test_a_whole_run(
    number: int,
    names: tuple[str, ...],
    lacking: Lacking,
    people: Path,
    tmp_path: Path,
    expected: tuple[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lacking(number, *names)
    config = quick(people, tmp_path, f"run_dir={tmp_path / 'run'}")
    with caplog.at_level(logging.WARNING, "birthplace_lm"):
        metrics = run(config)
    assert metrics["weights_sha256"] == expected[0]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(names) + ("fsync" in names)
    for name, text in (
        ("symlink", "has no symbolic"),
        ("lock", "has no file locks"),
        ("fsync", "cannot sync"),
    ):
        assert any(text in warning for warning in warnings) == any(call.startswith(name) for call in names)
    # Whatever reads the pretraining through the run directory finds it.
    assert stage_directory(tmp_path / "run", "pretrain").samefile(*(tmp_path / "runs/pretrained").iterdir())
    assert learning_curve(find_runs(tmp_path / "run")[0]) == expected[1]
    assert run(config) == metrics


def test_the_model_of_a_run_without_finetuning(lacking: Lacking, people: Path, tmp_path: Path) -> None:
    lacking(errno.EPERM, "symlink")
    run(quick(people, tmp_path, f"run_dir={tmp_path / 'run'}", "stages.finetune.enabled=false"))
    assert (tmp_path / "run" / "pretrain").is_file()
    assert len(birthplace_lm.load(tmp_path / "run").answer(["Ada Lovelace"])) == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_run_copied_without_its_pretraining(
    links: bool, lacking: Lacking, people: Path, tmp_path: Path
) -> None:
    if not links:
        lacking(errno.EPERM, "symlink")
    run(quick(people, tmp_path, f"run_dir={tmp_path / 'run'}", "stages.finetune.enabled=false"))
    (tmp_path / "runs" / "pretrained").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"runs/pretrained/.*, which is missing; copy them too"):
        birthplace_lm.load(tmp_path / "run")


def test_without_locks_the_processes_of_a_host_exclude_one_another(
    lacking: Lacking, people: Path, tmp_path: Path
) -> None:
    lacking(errno.ENOLCK, "lock")
    folder = tmp_path / "run"
    with run_lock(folder, wait=False), multiprocessing.get_context("fork").Pool(1) as pool:
        assert "another process" in pool.apply(_try, (folder,))
        assert pool.apply(is_locked, (folder,))
        pool.close()
        pool.join()
    assert _try(folder) == "locked"
    assert not is_locked(folder)


def test_the_folder_of_another_user_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the lock file was opened for writing, so a report called every such run running."""
    real = Path.open

    def read_only(path: Path, mode: str = "r", *args: Any) -> Any:
        if mode not in ("r", "rb"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *args)

    with run_lock(tmp_path / "run", wait=False):
        monkeypatch.setattr(Path, "open", read_only)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(is_locked, (tmp_path / "run",))
    assert not is_locked(tmp_path / "run")


def test_asking_for_a_lock_does_not_release_it(tmp_path: Path) -> None:
    """Bug: whoever closes any descriptor of a file loses the POSIX lock that his process has on it."""
    with run_lock(tmp_path / "run", wait=False), multiprocessing.get_context("fork").Pool(1) as pool:
        assert is_locked(tmp_path / "run")
        assert "this process" in _try(tmp_path / "run")
        assert "another process" in pool.apply(_try, (tmp_path / "run",))
    assert not is_locked(tmp_path / "run")


def _try(folder: Path) -> str:
    try:
        with run_lock(folder, wait=False):
            return "locked"
    except InputError as error:
        return str(error)


def test_without_any_lock_the_way_out_is_named(
    lacking: Lacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(errno.ENOLCK, "lock")
    (tmp_path / "remote").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "remote"))
    with pytest.raises(CheckpointError, match=r"No locks available.*set runs_root= to a local disk"):
        RunDirectory(tmp_path / "run", DictConfig({})).open_for_run().__enter__()
