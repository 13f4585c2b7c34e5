"""A checkpoint is whole or does not count."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from birthplace_lm import checkpoint, files
from birthplace_lm.error import CheckpointError

OURS = {"format": 1, "stage": "pretrain", "config": "", "vocab": ["a"], "data": {}}
STATE: dict[str, Any] = {
    "state_dict": {"w": torch.arange(1000.0)},
    "global_step": 7,
    "epoch": 3,
    "birthplace_lm": OURS,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = checkpoint.path_of(tmp_path, 7)
    checkpoint.VerifiedCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_gives_back_what_was_saved(saved: Path) -> None:
    found = checkpoint.load(saved)
    assert torch.equal(found["state_dict"].pop("w"), STATE["state_dict"]["w"])
    assert found == {**STATE, "state_dict": {}}
    assert sorted(p.name for p in saved.parent.iterdir()) == [
        "step-00000007.ckpt",
        "step-00000007.ckpt.sha256",
    ]


def test_notices_every_flipped_bit_and_truncation(saved: Path) -> None:
    whole = saved.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        assert not checkpoint.verified(saved)
    for _ in range(50):
        saved.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(saved)
    saved.write_bytes(whole)
    assert checkpoint.verified(saved)


def test_does_not_run_what_is_pickled_in_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "step-00000001.ckpt"
    checkpoint.VerifiedCheckpointIO().save_checkpoint({"state_dict": Evil()}, path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_an_error_and_the_old_file_stays(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = saved.read_bytes()
    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.VerifiedCheckpointIO().save_checkpoint({"other": 1}, saved)
    assert saved.read_bytes() == before
    assert checkpoint.verified(saved)


def test_the_newest_step_comes_first(tmp_path: Path) -> None:
    for step in (9, 100, 10):
        checkpoint.VerifiedCheckpointIO().save_checkpoint({}, checkpoint.path_of(tmp_path, step))
    (tmp_path / "last.ckpt").touch()
    assert [checkpoint.step_of(p) for p in checkpoint.saved_in(tmp_path)] == [100, 10, 9]


@pytest.mark.parametrize("path", ["https://example.org/step-1.ckpt", "/nowhere/step-1.ckpt"])
def test_only_local_files_that_exist(path: str) -> None:
    with pytest.raises(CheckpointError):
        checkpoint.load(Path(path))
