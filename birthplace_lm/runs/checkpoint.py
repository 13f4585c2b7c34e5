"""Checkpoint files: written atomically, verified by their SHA-256 whenever they are read."""

import hashlib
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from birthplace_lm.errors import CheckpointError
from birthplace_lm.runs.atomic_files import atomic_replace, atomic_write_text, remove_temp_files, sha256_of

FORMAT = 3  # raised whenever the content of a checkpoint changes; no other format is read
STEP = re.compile(r"step-(\d+)\.ckpt")
DAMAGED = ".damaged"
PLAIN_CONTAINERS = (dict, OrderedDict, list, tuple, set, torch.Size)
PLAIN_TYPES = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)
MAX_OBJECTS = 1_000_000  # in one checkpoint

# Entries of "birthplace_lm" in a checkpoint; the rest of it is Lightning's.
METADATA_TYPES: dict[str, type] = {"format": int, "stage": str, "config": str, "vocab": list, "data": dict}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint in memory, so that its file is read once."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "LoadedCheckpoint":
        """Read and verify; see `load`."""
        return cls(path, load(path))

    @property
    def step(self) -> int:
        """The optimizer step after which it was saved."""
        return int(self.content["global_step"])

    @property
    def metadata(self) -> dict[str, Any]:
        """What METADATA_TYPES lists, and more."""
        metadata: dict[str, Any] = self.content["birthplace_lm"]
        return metadata


def save(content: Mapping[str, Any], path: Path) -> None:
    """Save plain tensors, numbers, strings, lists and dicts.

    The bytes go to a temporary file, which is synced and read back. It is renamed only after the hash file
    (`PATH.sha256`) is written, so a file with the final name is complete, whenever the process is killed.
    While a checkpoint of the same name is replaced, the hash file holds the SHA-256 of both.

    Raises:
        CheckpointError: the content holds something else, or the disk is full, is not writable, or returns
            other bytes than were written.
    """
    _check_plain(path, content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getbuffer()
    digest = hashlib.sha256(written).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replaced = _saved_hashes(path) if path.exists() and _hash_file(path).is_file() else []
        with atomic_replace(path, written):
            atomic_write_text(_hash_file(path), "\n".join([digest, *replaced]) + "\n")
        if replaced:
            atomic_write_text(_hash_file(path), digest + "\n")
    except OSError as error:
        if not path.exists():
            with suppress(OSError):
                _hash_file(path).unlink()
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def copy_into(loaded: LoadedCheckpoint, directory: Path) -> Path:
    """Save a checkpoint of another folder in this one, under the name of its step.

    Raises:
        CheckpointError: it cannot be written.
    """
    copy = checkpoint_path(directory, loaded.step)
    save(loaded.content, copy)
    return copy


def remove(path: Path) -> None:
    """Remove a checkpoint and its hash.

    Raises:
        CheckpointError: the folder is not writable.
    """
    try:
        path.unlink(missing_ok=True)
        _hash_file(path).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be removed: {error.strerror or error}") from error


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read and verify one checkpoint, without instantiating any class of it.

    Raises:
        CheckpointError: it is missing or damaged, or is no checkpoint of this version of the project.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint; give the path of a local file")
        content = path.read_bytes()
        if not _hash_file(path).is_file():
            raise CheckpointError(
                f"{path}: {_hash_file(path).name} is missing beside it; copy both files of a checkpoint"
            )
        expected = _saved_hashes(path)
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}") from error
    if hashlib.sha256(content).hexdigest() not in expected:
        raise CheckpointError(
            f"{path}: damaged: its {len(content)} bytes do not match its SHA-256; copy it again, or train"
            " again with overwrite=true"
        )
    try:
        _check_archive(content)
        loaded = torch.load(io.BytesIO(content), map_location=map_location or "cpu", weights_only=True)
        _check_size(loaded)
        _check_content(path, loaded)
        # Plain dicts: a pickled OrderedDict may have attributes that shadow its methods.
        return {**loaded, "state_dict": {**loaded["state_dict"]}}
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can raise any
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it contains more than plain data" if unsafe else f"{type(error).__name__}: {error}".strip()
        raise CheckpointError(f"{path}: cannot be loaded: {reason.splitlines()[0]}") from error


def is_intact(path: Path) -> bool:
    """Whether the file has the SHA-256 that was saved with it."""
    try:
        return path.is_file() and sha256_of(path) in _saved_hashes(path)
    except (OSError, ValueError):
        return False


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a folder, newest step first; they are not verified."""
    steps = [(step, p) for p in directory.glob("step-*.ckpt") if (step := parse_step(p)) is not None]
    return [path for _, path in sorted(steps, reverse=True)]


def latest_intact(directory: Path) -> Path | None:
    """The newest intact checkpoint of a folder; None if the folder has no checkpoint.

    Raises:
        CheckpointError: all of them are damaged.
    """
    paths = list_checkpoints(directory)
    for path in paths:
        if is_intact(path):
            return path
    if paths:
        raise CheckpointError(f"{directory}: all checkpoints are damaged; remove them to start over")
    return None


def quarantine_and_prune(directory: Path, resumed: Path | None) -> list[Path]:
    """Rename damaged checkpoints, and remove temporary files and checkpoints of later steps than `resumed`.

    The caller must hold the lock of the folder.

    Args:
        resumed: a checkpoint of the folder that was just verified; None to start from the beginning.

    Returns:
        The damaged ones, by their new names.
    """
    remove_temp_files(directory)
    step = 0 if resumed is None else parse_step(resumed) or 0
    damaged = []
    for path in list_checkpoints(directory):
        if path == resumed:
            continue
        if not is_intact(path):
            damaged.append(path.replace(path.with_name(path.name + DAMAGED)))
        elif (parse_step(path) or 0) > step:
            remove(path)
    for hash_file in directory.glob("step-*.ckpt.sha256"):
        if not hash_file.with_suffix("").exists():
            hash_file.unlink(missing_ok=True)
    return damaged


def parse_step(path: Path) -> int | None:
    """The optimizer step in the name of a checkpoint; None if it has another name."""
    return int(match[1]) if (match := STEP.fullmatch(path.name)) else None


def checkpoint_path(directory: Path, step: int) -> Path:
    """The path of the checkpoint of an optimizer step."""
    return directory / f"step-{step:08d}.ckpt"


def best_path(directory: Path) -> Path:
    """The path of the weights of the best validation, which no run resumes from."""
    return directory / "best.ckpt"


def _check_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Check that `load` will read it: the state of a user's class may hold anything."""
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict) and type(value) in PLAIN_CONTAINERS:
            stack += [(f"{place}.{key}", inner) for key, inner in value.items()]
            stack += [(f"a key of {place}", key) for key in value if type(key) is not str]
        elif type(value) in PLAIN_CONTAINERS:
            stack += [(place, item) for item in value]
        elif type(value) not in PLAIN_TYPES and not isinstance(value, Tensor):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise CheckpointError(
                f"{path}: {place.lstrip('.')} is a {kind}; a checkpoint holds tensors, numbers, text, lists"
                " and dicts only"
            )


def _check_archive(content: bytes) -> None:
    """Check that reading takes no more memory than the file has bytes: torch never compresses."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("it is compressed; checkpoints of this project are not")


def _check_size(loaded: Any) -> None:
    """Limit the number of objects: nested lists can refer to one another exponentially often."""
    stack, visited = [loaded], 0
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple | set):
            stack += value
        visited += 1
        if visited > MAX_OBJECTS:
            raise ValueError(f"it contains more than {MAX_OBJECTS:,} objects")


def _check_content(path: Path, loaded: Any) -> None:
    metadata = loaded.get("birthplace_lm") if isinstance(loaded, dict) else None
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    has_weights = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not has_weights:
        raise CheckpointError(f"{path}: contains no weights")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: contains only weights; expected a checkpoint of birthplace_lm")
    if metadata.get("format") != FORMAT:
        other = str(metadata.get("format"))[:20]
        raise CheckpointError(
            f"{path}: has format {other} of another version of birthplace_lm; this version reads {FORMAT}"
        )
    if not isinstance(loaded.get("global_step"), int):
        raise CheckpointError(f"{path}: global_step is missing or no int")
    for key, kind in METADATA_TYPES.items():
        if not isinstance(metadata.get(key), kind):
            raise CheckpointError(f"{path}: birthplace_lm.{key} is missing or no {kind.__name__}")
    if not all(isinstance(digest, str) for digest in metadata["data"].values()):
        raise CheckpointError(f"{path}: birthplace_lm.data contains more than hashes")
    if not all(isinstance(symbol, str) for symbol in metadata["vocab"]):
        raise CheckpointError(f"{path}: birthplace_lm.vocab contains more than characters")


def _saved_hashes(path: Path) -> list[str]:
    """The SHA-256 of the checkpoint; the new and the old one if `save` was killed while it replaced it."""
    return _hash_file(path).read_text(encoding="ascii").split()


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
