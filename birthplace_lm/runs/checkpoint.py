"""Checkpoints that are whole or absent, and are verified before they are believed."""

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from birthplace_lm.errors import CheckpointError
from birthplace_lm.runs.atomic_files import atomic_replace, atomic_write_text, remove_temp_files, sha256_of

FORMAT = 3  # raised whenever the content of a checkpoint changes; no other format is read
STEP = re.compile(r"step-(\d+)\.ckpt")
DAMAGED = ".damaged"

# What is ours in a checkpoint, besides what Lightning puts there.
METADATA_TYPES: dict[str, type] = {"format": int, "stage": str, "config": str, "vocab": list, "data": dict}


def save(content: Mapping[str, Any], path: Path) -> None:
    """Save plain tensors, numbers, strings, lists and dicts.

    They are written beside the destination, synced, read back, and renamed once the SHA-256 lies beside it
    too. The rename comes last: a checkpoint that has its name is whole, wherever the process was killed.

    Raises:
        CheckpointError: the disk is full, cannot be written, or gives back something else.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path, written):
            atomic_write_text(_hash_file(path), hashlib.sha256(written).hexdigest() + "\n")
    except OSError as error:
        if not path.exists():
            with suppress(OSError):
                _hash_file(path).unlink()
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def copy_into(path: Path, directory: Path) -> Path:
    """Copy a checkpoint of another folder into this one, under the name that its step has here.

    Raises:
        CheckpointError: it is damaged, or cannot be written here.
    """
    content = load(path)
    copy = checkpoint_path(directory, content["global_step"])
    save(content, copy)
    return copy


def remove(path: Path) -> None:
    """Remove a checkpoint and its hash.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
        _hash_file(path).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be removed: {error.strerror or error}") from error


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read and verify one checkpoint. Nothing is instantiated from it.

    Raises:
        CheckpointError: it is missing, is not what was saved, or holds something else than our data.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such checkpoint; give the path of a local file")
        content = path.read_bytes()
        if not _hash_file(path).is_file():
            raise CheckpointError(
                f"{path}: {len(content)} bytes without a {_hash_file(path).name} beside them, as every"
                " checkpoint has"
            )
        expected = _saved_hash(path)
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise CheckpointError(f"{path}: damaged: its {len(content)} bytes are not those that were saved")
    try:
        _check_archive(content)
        found = torch.load(io.BytesIO(content), map_location=map_location or "cpu", weights_only=True)
        _check_size(found)
        _check_content(path, found)
        # Ordered dicts may bring attributes, by which they can be made to seem something else.
        return {**found, "state_dict": {**found["state_dict"]}}
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile file makes the reader stumble over
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds something else than data" if unsafe else f"{type(error).__name__}: {error}".strip()
        raise CheckpointError(f"{path}: cannot be loaded: {reason.splitlines()[0]}") from error


def is_intact(path: Path) -> bool:
    """Whether the file is, bit for bit, the one that was saved."""
    try:
        return path.is_file() and _saved_hash(path) == sha256_of(path)
    except (OSError, ValueError):
        return False


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a folder, newest step first, verified or not."""
    found = [(step, p) for p in directory.glob("step-*.ckpt") if (step := parse_step(p)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def latest_intact(directory: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole; None if there never was one.

    Raises:
        CheckpointError: there are some, and all of them are damaged.
    """
    found = list_checkpoints(directory)
    for path in found:
        if is_intact(path):
            return path
    if found:
        raise CheckpointError(f"{directory}: no checkpoint is whole; remove them to start over")
    return None


def quarantine_and_prune(directory: Path, step: int) -> list[Path]:
    """Leave nothing that could be taken for a later checkpoint than that of `step`, nor half a file.

    Damaged ones are kept under another name. Only for who holds the folder's lock.

    Returns:
        The damaged ones, by their new names.
    """
    remove_temp_files(directory)
    damaged = []
    for path in list_checkpoints(directory):
        if not is_intact(path):
            damaged.append(path.replace(path.with_name(path.name + DAMAGED)))
        elif (parse_step(path) or 0) > step:
            remove(path)
    for left in directory.glob("step-*.ckpt.sha256"):
        if not left.with_suffix("").exists():
            left.unlink(missing_ok=True)
    return damaged


def parse_step(path: Path) -> int | None:
    """The optimizer step in the name of a checkpoint; None if it has another name."""
    return int(match[1]) if (match := STEP.fullmatch(path.name)) else None


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step is kept."""
    return directory / f"step-{step:08d}.ckpt"


def _check_archive(content: bytes) -> None:
    """Check that reading takes no more memory than the file has: torch stores, it does not compress."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("it is compressed, which no checkpoint of ours is")


def _check_size(found: Any, most: int = 1_000_000) -> None:
    """Check that whoever walks through it comes to an end: lists may hold one another many times."""
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        most -= 1
        if most < 0:
            raise ValueError("it holds too much")


def _check_content(path: Path, found: Any) -> None:
    ours = found.get("birthplace_lm") if isinstance(found, dict) else None
    state = found.get("state_dict") if isinstance(found, dict) else None
    weights = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not weights:
        raise CheckpointError(f"{path}: holds no weights")
    if not isinstance(ours, dict):
        raise CheckpointError(f"{path}: holds weights only; a checkpoint of this project is needed")
    if ours.get("format") != FORMAT:
        theirs = str(ours.get("format"))[:20]
        raise CheckpointError(
            f"{path}: of another version of birthplace_lm (format {theirs}, this one reads {FORMAT})"
        )
    if not isinstance(found.get("global_step"), int):
        raise CheckpointError(f"{path}: does not say after which step it was saved")
    for key, kind in METADATA_TYPES.items():
        if not isinstance(ours.get(key), kind):
            raise CheckpointError(f"{path}: its birthplace_lm.{key} is no {kind.__name__}")
    if not all(isinstance(digest, str) for digest in ours["data"].values()):
        raise CheckpointError(f"{path}: its data holds something else than hashes")
    if not all(isinstance(symbol, str) for symbol in ours["vocab"]):
        raise CheckpointError(f"{path}: its vocabulary holds something else than characters")


def _saved_hash(path: Path) -> str:
    return _hash_file(path).read_text(encoding="ascii").strip()


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
