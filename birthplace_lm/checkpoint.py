"""Checkpoints that are whole or absent, and are verified before they are believed."""

import hashlib
import re
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from birthplace_lm.error import CheckpointError
from birthplace_lm.files import replacing, write_text

STEP = re.compile(r"step-(\d+)\.ckpt")


class VerifiedCheckpointIO(CheckpointIO):
    """Writes beside the destination, syncs, renames, and leaves the SHA-256 in a file of its own.

    A checkpoint without its hash was never finished and does not count.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save plain tensors, numbers, strings, lists and dicts.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)
            write_text(_hash_file(path), _sha256(path) + "\n")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load after verifying the hash; nothing but data is ever unpickled."""
        return load(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, its hash first, so that half of a removal is no checkpoint."""
        _hash_file(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: it is missing, is not what was saved, or holds more than data.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path}: a checkpoint is a local file")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    if not verified(path):
        raise CheckpointError(f"{path}: damaged, or its {_hash_file(path).name} is missing")
    try:
        return cast(dict[str, Any], torch.load(path, map_location=map_location or "cpu", weights_only=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: cannot be loaded: {reason}") from error


def verified(path: Path) -> bool:
    """Whether the file is, bit for bit, the one that was saved."""
    try:
        return _hash_file(path).read_text(encoding="ascii").strip() == _sha256(path)
    except (OSError, UnicodeDecodeError):
        return False


def saved_in(directory: Path) -> list[Path]:
    """The checkpoints of a folder, newest step first, verified or not."""
    found = [(step, p) for p in directory.glob("step-*.ckpt") if (step := step_of(p)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(path: Path) -> int | None:
    """The optimizer step in the name of a checkpoint; None if it has another name."""
    return int(match[1]) if (match := STEP.fullmatch(path.name)) else None


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step is kept."""
    return directory / f"step-{step:08d}.ckpt"


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
