"""Reading a file that may be anything: it must not hang, fill the memory or fail without naming the place."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data.corpora import text_file
from birthplace_lm.data.corpora.qa_files import read_documents, read_questions
from birthplace_lm.errors import InputError

ADA = "Where was Ada Lovelace born?\tLondon\n"


def write(folder: Path, content: str | bytes, name: str = "train.tsv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("kind", ["missing", "directory", "FIFO", "loop", "NUL in the path", "under a file"])
def test_path_that_is_no_file_is_named_with_its_key(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wiki.txt"
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "NUL in the path":
            path = tmp_path / "a\0b"
        case "under a file":
            path = write(tmp_path, ADA) / "wiki.txt"
    reason = {
        "missing": "No such file or directory",
        "directory": "Is a directory",
        "FIFO": "FIFO",
        "loop": "Too many levels of symbolic links",
        "NUL in the path": "null byte",
        "under a file": "Not a directory",
    }[kind]
    shown = str(path).replace("\0", r"\x00")
    with time_limit(5), pytest.raises(InputError) as error:
        read_documents(path)
    assert str(error.value).startswith(f"data.corpus={shown}: cannot read: ")
    assert reason in str(error.value)


def test_unreadable_file_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ADA)

    def refuse(path: str, flags: int) -> int:  # root may read everything, so the refusal is made here
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert (
        str(error.value)
        == f"data.train={path}: cannot read: Permission denied; give a regular, readable file"
    )


def test_message_is_one_printable_line_whatever_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a\n\x1b[31m\udcff ü"
    with pytest.raises(InputError) as error:
        read_documents(path)
    assert r"a\n\x1b[31m\udcff ü" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("content", [b"x" * 10_000_000, b"\0" * 70_000 + b"x" * 10_000_000])
def test_long_line_is_refused_in_bounded_memory(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"train.tsv:1:1: binary data|longer than 100,000 bytes"):
            read_documents(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_end_of_a_line_is_no_part_of_its_length(tmp_path: Path, end: str) -> None:
    longest = "x" * text_file.MAX_LINE_BYTES
    assert read_documents(write(tmp_path, longest + end)).lines == [longest]
    with pytest.raises(InputError, match=r"train.tsv:1: longer than 100,000 bytes"):
        read_documents(write(tmp_path, longest + "x" + end))


def test_binary_data_is_refused_after_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ADA * 1000 + "\0" + "x" * 1_000_000)
    chunks: list[bytes] = []
    read = text_file.TextFile._chunks

    def count(self: text_file.TextFile) -> Iterator[bytes]:
        for chunk in read(self):
            chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(text_file.TextFile, "_chunks", count)
    with pytest.raises(InputError, match=r"train.tsv:1001:1: binary data"):
        read_questions(path)
    assert [len(chunk) for chunk in chunks] == [65_536]


def test_combining_marks_do_not_stall(tmp_path: Path) -> None:
    path = write(tmp_path, "a" + "\u0323\u0301" * 24_000 + "\n")
    begin = time.process_time()
    with pytest.raises(InputError, match=r":1: over 30 combining marks"):
        read_documents(path)
    assert time.process_time() - begin < 2


@given(st.text("aé€😀\n\r\t ", min_size=1, max_size=40), st.integers(1, 7))
def test_chunk_size_changes_nothing(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = write(tmp_path_factory.getbasetemp(), text)
    expected = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "CHUNK_BYTES", size)
        file = text_file.TextFile(path, "data.train")
        assert list(file.lines()) == list(enumerate(expected, 1))
    assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_errors_show_without_importing_torch() -> None:
    modules = "print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    code = f"import sys, birthplace_lm.data.corpora.qa_files; {modules}"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=20, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"
