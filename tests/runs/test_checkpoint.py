"""A checkpoint is whole or does not count."""

import errno
import io
import logging
import os
import random
import resource
import shutil
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from program import leftovers
from stage import digest, fit, forge, forked, hydra_job, quick, sampled, sign, write_config
from stage import run as run_pipeline

from birthplace_lm.cli import app, session
from birthplace_lm.errors import BirthplaceError, CheckpointError
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.models.build import build_model, load_state_dict_checked
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.metrics import STAGE_RESULT
from birthplace_lm.training import pipeline

SECONDS = 10  # enough on a slow machine, but a bomb grows beyond any limit
OURS = {"format": checkpoint.FORMAT, "stage": "pretrain", "config": "", "vocab": ["a"], "data": {}}
STATE: dict[str, Any] = {
    "state_dict": {"w": torch.arange(1000.0)},
    "global_step": 7,
    "epoch": 3,
    "birthplace_lm": OURS,
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = checkpoint.checkpoint_path(tmp_path, 7)
    checkpoint.save(STATE, path)
    return path


def test_gives_back_what_was_saved(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert torch.equal(loaded["state_dict"].pop("w"), STATE["state_dict"]["w"])
    assert loaded == {**STATE, "state_dict": {}}
    assert sorted(p.name for p in saved.parent.iterdir()) == [
        "step-00000007.ckpt",
        "step-00000007.ckpt.sha256",
    ]


def test_does_not_run_what_is_pickled_in_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "step-00000001.ckpt"
    with pytest.raises(CheckpointError, match=r"state_dict is a .*Evil; a checkpoint holds tensors"):
        checkpoint.save({"state_dict": Evil()}, path)
    torch.save({"state_dict": Evil()}, path)
    sign(path)
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
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save({"other": 1}, saved)
    assert saved.read_bytes() == before
    assert checkpoint.is_intact(saved)


def test_the_newest_step_comes_first(tmp_path: Path) -> None:
    for step in (9, 100, 10):
        checkpoint.save({}, checkpoint.checkpoint_path(tmp_path, step))
    (tmp_path / "last.ckpt").touch()
    assert [checkpoint.parse_step(p) for p in checkpoint.list_checkpoints(tmp_path)] == [100, 10, 9]


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(Path("/nowhere/step-1.ckpt"))


@pytest.fixture(scope="module")
def stage(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage that has been left alone; its last two checkpoints are of the steps 4 and 6."""
    root = tmp_path_factory.mktemp("real")
    fit(quick(people, root), "finetune", root / "finetune")
    return root / "finetune"


@pytest.fixture
def config(people: Path, tmp_path: Path) -> DictConfig:
    return quick(people, tmp_path)


def damaged(whole: bytes, draw: random.Random, how: str) -> bytes:
    if how == "flipped":
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    return whole[: draw.randrange(len(whole))]


@pytest.mark.parametrize(("how", "suite", "torture"), [("flipped", 300, 1000), ("truncated", 60, 200)])
def test_notices_all_damage(
    how: str, suite: int, torture: int, stage: Path, tmp_path: Path, amount: Any, record: Any
) -> None:
    path = tmp_path / "step-00000006.ckpt"
    shutil.copy(checkpoint.checkpoint_path(stage, 6), path)
    whole = path.read_bytes()
    sign(path)
    assert checkpoint.is_intact(path)
    draw, noticed = random.Random(how), 0
    for _ in range(amount(suite, torture)):
        path.write_bytes(damaged(whole, draw, how))
        assert not checkpoint.is_intact(path)
        with pytest.raises(CheckpointError, match=r"damaged: its \d+ bytes do not match its SHA-256"):
            checkpoint.load(path)
        noticed += 1
    record(f"{how} checkpoints", f"{noticed} of {amount(suite, torture)} noticed")


def spoil_hash(content: bytes | None) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path.with_name(path.name + ".sha256")
        file.unlink()
        if content is not None:
            file.write_bytes(content)

    return spoil


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": lambda path: path.write_bytes(damaged(path.read_bytes(), random.Random(1), "flipped")),
    "another bit": lambda path: path.write_bytes(damaged(path.read_bytes(), random.Random(2), "flipped")),
    "cut off": lambda path: path.write_bytes(damaged(path.read_bytes(), random.Random(3), "truncated")),
    "empty": lambda path: path.write_bytes(b""),
    "hash empty": spoil_hash(b""),
    "hash binary": spoil_hash(b"\x00\xff" * 50),
    "hash of something else": spoil_hash(b"0" * 64 + b"\n"),
    "hash missing": spoil_hash(None),
}


@pytest.mark.parametrize(("finished", "damage"), sampled([True, False], list(DAMAGE)))
def test_falls_back_to_the_one_before(
    finished: bool,
    damage: str,
    stage: Path,
    config: DictConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the stage was done: what comes after must not go on from an older checkpoint."""
    folder = tmp_path / "stage"
    shutil.copytree(stage, folder)
    if not finished:
        (folder / STAGE_RESULT).unlink()
    last = checkpoint.checkpoint_path(folder, 6)
    DAMAGE[damage](last)
    left = last.read_bytes()
    assert checkpoint.latest_intact(folder) == checkpoint.checkpoint_path(folder, 4)
    with caplog.at_level(logging.WARNING, "birthplace_lm"):
        fit(config, "finetune", folder)
    aside = last.with_name("step-00000006.ckpt.damaged")
    assert [r.getMessage() for r in caplog.records] == [f"moved a damaged checkpoint to {aside}"]
    assert aside.read_bytes() == left
    assert digest(folder) == digest(stage)
    assert leftovers(folder) == []


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_no_whole_checkpoint_is_an_error(
    finished: bool, stage: Path, config: DictConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "stage"
    shutil.copytree(stage, folder)
    if not finished:
        (folder / STAGE_RESULT).unlink()
    for path in checkpoint.list_checkpoints(folder):
        path.write_bytes(damaged(path.read_bytes(), random.Random(0), "flipped"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match="all checkpoints are damaged") as caught:
        fit(config, "finetune", folder)
    assert caught.value.exit_code == 4
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_finished_stage_without_its_checkpoint_is_an_error(
    stage: Path, config: DictConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "stage"
    shutil.copytree(stage, folder)
    for path in folder.glob("step-*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="finished, but its checkpoint is gone"):
        fit(config, "finetune", folder)


def test_asking_a_run_whose_newest_checkpoint_is_damaged(
    stage: Path, config: DictConfig, tmp_path: Path
) -> None:
    """The one before would answer, and nobody would know that it is not the trained model."""
    write_config(tmp_path / "run", config)
    shutil.copytree(stage, tmp_path / "run" / "finetune")
    TrainedModel.from_run(tmp_path / "run")
    DAMAGE["one bit"](checkpoint.checkpoint_path(tmp_path / "run" / "finetune", 6))
    with pytest.raises(CheckpointError, match=r"step-00000006\.ckpt: damaged"):
        TrainedModel.from_run(tmp_path / "run")


def test_files_are_read_once_or_twice(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume reads its checkpoint twice: to find an intact one, and to load it. A finished stage: once."""
    config = quick(people, tmp_path, f"run_dir={tmp_path / 'run'}")
    run_pipeline(config)
    finetune = tmp_path / "run" / "finetune"
    last, before = checkpoint.list_checkpoints(finetune)
    reads: Counter[str] = Counter()
    real = Path.open

    def counted(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".ckpt":
            reads[path.name] += 1
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", counted)
    (tmp_path / "run" / "status.json").unlink()
    run_pipeline(config)
    assert reads == {"step-00000008.ckpt": 1, last.name: 1}
    reads.clear()
    (tmp_path / "run" / "status.json").unlink()
    (finetune / STAGE_RESULT).unlink()
    checkpoint.remove(last)
    run_pipeline(config)
    assert reads == {"step-00000008.ckpt": 1, before.name: 2, last.name: 1}


# What an attacker writes, whose hash is right.


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


WRONG: list[Any] = [
    None, 0, -1, 10**30, 1.5, float("nan"), True, "x", "", b"x", [], {}, [[]], [1], {1: 2}, {"a": {}}, ("x",),
    torch.zeros(2), torch.zeros(()), torch.zeros(2, 2, dtype=torch.int64),
    torch.zeros(1, dtype=torch.complex64), torch.zeros(1).expand(10**12), torch.eye(3).to_sparse(),
    torch.empty(3, device="meta"), torch.Size([1]),
]  # fmt: skip


def change_structure(whole: bytes, draw: random.Random) -> bytes:
    """Put something of another type somewhere, or remove it, or name it otherwise."""
    loaded = torch.load(io.BytesIO(whole), weights_only=True)
    node, depth = loaded, draw.choice([1, 1, 2, 2, 3, 4, 6])
    while True:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        inner = node[key]
        depth -= 1
        if depth and isinstance(inner, dict | list) and len(inner):
            node = inner
            continue
        break
    how = draw.randrange(4)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[draw.choice([f"{key}x", 7, "get", "items", "_metadata", None])] = node.pop(key)
    else:
        node[key] = draw.choice(WRONG)
    out = io.BytesIO()
    torch.save(loaded, out)
    return out.getvalue()


def change_pickle(whole: bytes, draw: random.Random) -> bytes:
    files = entries(whole)
    (name,) = (name for name in files if name.endswith("/data.pkl"))
    changed = bytearray(files[name])
    for _ in range(draw.choice([1, 1, 2, 5])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return zipped({**files, name: bytes(changed)})


def change_entries(whole: bytes, draw: random.Random) -> bytes:
    files = entries(whole)
    name, other = draw.sample(list(files), 2)
    how = draw.randrange(6)
    if how == 0:
        del files[name]
    elif how == 1:
        files[name + "x"] = files.pop(name)
    elif how == 2:
        files[name], files[other] = files[other], files[name]
    elif how == 3:
        files[name] = files[name][: len(files[name]) // 2]
    elif how == 4:
        files[name] *= 3
    else:
        return zipped(files, zipfile.ZIP_DEFLATED)
    return zipped(files)


def change_bytes(whole: bytes, draw: random.Random) -> bytes:
    """In the directory of the archive above all, which says how large everything is."""
    changed = bytearray(whole)
    directory = whole.index(b"PK\x01\x02")
    for _ in range(draw.choice([1, 2, 8])):
        where = draw.randrange(directory, len(whole)) if draw.random() < 0.8 else draw.randrange(len(whole))
        changed[where] = draw.choice([0, 0xFF, draw.randrange(256)])
    return bytes(changed)


MUTATIONS = [change_structure, change_structure, change_pickle, change_entries, change_bytes]


@pytest.fixture(scope="module")
def run(people: Path, stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory without a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    write_config(folder, quick(people, folder))
    (folder / "finetune").mkdir()
    return folder


def within(bytes_more: int, work: Callable[[], object]) -> int:
    """Do it in a child that may take only so much more memory; see `forked`."""

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + bytes_more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()

    return forked(limited)


def try_forged(content: bytes, run: Path) -> bool:
    """Whether it is taken for a checkpoint; nothing but BirthplaceError may be raised, within `SECONDS`."""
    path = checkpoint.checkpoint_path(run / "finetune", 9)
    path.write_bytes(content)
    sign(path)
    began = time.process_time()
    try:
        checkpoint.load(path)
    except BirthplaceError:
        return False
    finally:
        assert time.process_time() - began < SECONDS
    try:
        TrainedModel.from_run(run).answer(["Ada Lovelace"])
    except BirthplaceError:
        pass
    finally:
        assert time.process_time() - began < SECONDS
    return True


def try_resume(content: bytes, config: DictConfig, folder: Path) -> bool:
    """Whether a stage goes on from it to its end; else an error that `pipeline.run` says in one line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = checkpoint.checkpoint_path(folder, 4)
    path.write_bytes(content)
    sign(path)
    message = ""
    try:
        fit(config, "finetune", folder)
    except Exception as error:
        message = str(pipeline.to_birthplace_error(error, folder))
    if message:
        assert "\n" not in message
        return False
    last = checkpoint.list_checkpoints(folder)[0]
    loaded = checkpoint.load(last)
    model = build_model(config.model, len(loaded["birthplace_lm"]["vocab"]))
    load_state_dict_checked(model, model_state_dict(loaded), last)
    return True


def test_forged_checkpoints(
    stage: Path, run: Path, config: DictConfig, tmp_path: Path, amount: Any, record: Any
) -> None:
    whole = checkpoint.checkpoint_path(stage, 4).read_bytes()
    total = amount(30, 1000)
    counts = tmp_path / "counts"

    def work() -> None:
        draw, taken, resumed = random.Random(0), 0, 0
        for number in range(total):
            forged = MUTATIONS[number % len(MUTATIONS)](whole, draw)
            (tmp_path / "last").write_bytes(forged)  # for whoever looks into a failure
            if try_forged(forged, run):
                taken += 1
                resumed += try_resume(forged, config, tmp_path / "stage")
        counts.write_text(f"{total} tried, {taken} of the right form, {resumed} gone on from, 0 tracebacks")

    assert within(4 << 30, work) == 0
    record("forged checkpoints with the right hash", counts.read_text())


CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "short": lambda t: t.flatten()[:1],
    "sparse": lambda t: t.to_sparse(),
    "number": lambda t: 3,
}


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "momentum"])
@pytest.mark.parametrize("change", CHANGES)
def test_moments_that_do_not_fit_their_weights(
    stage: Path, config: DictConfig, tmp_path: Path, moment: str, change: str
) -> None:
    """torch's fused AdamW wrote beyond the end of a moment that was too short."""
    content = torch.load(checkpoint.checkpoint_path(stage, 4), weights_only=True)
    states = content["optimizer_states"][0]["state"].values()
    state = next(state for state in states if moment in state)
    state[moment] = CHANGES[change](state[moment])
    folder = tmp_path / "forged"
    folder.mkdir()
    path = checkpoint.checkpoint_path(folder, 4)
    torch.save(content, path)
    sign(path)
    with pytest.raises(Exception, match=f"{moment} of the optimizer does not fit its weight") as caught:
        fit(config, "finetune", folder)
    assert isinstance(pipeline.to_birthplace_error(caught.value, folder), CheckpointError)


def nested(depth: int) -> list[Any]:
    items: list[Any] = []
    for _ in range(depth):
        items = [items]
    return items


def laughs() -> list[Any]:
    """10 ** 40 items, of which 400 are stored."""
    items: list[Any] = ["ha"] * 10
    for _ in range(40):
        items = [items] * 10
    return items


def pickled(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


class Shadowed:
    """Is read as an ordered dict one of whose methods is a word."""

    def __init__(self, method: str, content: dict[str, Any]) -> None:
        self.method, self.content = method, content

    def __reduce__(self) -> Any:
        return OrderedDict, (), {self.method: "word"}, None, iter(self.content.items())


def bombs(whole: bytes) -> Iterator[tuple[str, bytes]]:
    loaded = torch.load(io.BytesIO(whole), weights_only=True)
    files = entries(whole)
    data = next(name for name in files if name.endswith("/data/0"))
    yield "compressed", zipped({**files, data: bytes(1 << 27)}, zipfile.ZIP_DEFLATED)
    for offset, size in ((24, 4), (20, 4)):  # of an entry of the directory: sizes real and compressed
        claimed = bytearray(whole)
        start = whole.rindex(b"PK\x01\x02") + offset
        claimed[start : start + size] = b"\xf0\xff\xff\xff"
        yield f"claims 4 GB at {offset}", bytes(claimed)
    yield "short storage", zipped({**files, data: files[data][:8]})
    yield "no storage", zipped({**files, data: b""})
    weights = {name: torch.zeros(1).expand(10**6, 10**6) for name in loaded["state_dict"]}
    yield "expanded weights", pickled({**loaded, "state_dict": weights})
    no_values = {name: value.to("meta") for name, value in loaded["state_dict"].items()}
    yield "no values", pickled({**loaded, "state_dict": no_values})
    sparse = {name: value.to_sparse() for name, value in loaded["state_dict"].items()}
    yield "sparse", pickled({**loaded, "state_dict": sparse})
    for method in ("items", "keys", "values", "get"):
        yield f"weights without {method}", pickled({**loaded, "state_dict": Shadowed(method, weights)})
        yield f"all without {method}", pickled(Shadowed(method, loaded))
    numbered = dict(enumerate(loaded["state_dict"].values()))
    yield "numbers for names", pickled({**loaded, "state_dict": numbered})
    ours = loaded["birthplace_lm"]
    many = [chr(number) for number in range(0x20000) if not 0xD800 <= number < 0xE000]
    for name, vocab in (
        ("many symbols", many),
        ("twice", ["□", "⁇", "a", "a"]),
        ("none", []),
        ("long", ["ab"]),
    ):
        yield f"vocabulary: {name}", pickled({**loaded, "birthplace_lm": {**ours, "vocab": vocab}})
    yield "nested lists", pickled({**loaded, "loops": nested(200)})
    (data,) = (name for name in files if name.endswith("/data.pkl"))
    deep = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    yield "deeply nested lists", zipped({**files, data: deep})
    inner = files[data].removeprefix(b"\x80\x02").removesuffix(b".")
    beside = b"\x80\x02" + inner + b"X\x01\x00\x00\x00x" + deep[2:-1] + b"s."
    yield "deeply nested lists beside ours", zipped({**files, data: beside})
    yield "laughs", pickled({**loaded, "birthplace_lm": {**ours, "vocab": laughs()}})
    yield "laughs elsewhere", pickled({**loaded, "more": laughs()})
    yield "laughs for a format", pickled({**loaded, "birthplace_lm": {**ours, "format": laughs()}})
    yield "a long format", pickled({**loaded, "birthplace_lm": {**ours, "format": 10**6000}})


def test_bombs(stage: Path, run: Path) -> None:
    whole = checkpoint.checkpoint_path(stage, 4).read_bytes()
    for name, content in bombs(whole):
        assert within(1 << 30, partial(try_forged, content, run)) == 0, name


# What a user may name by mistake.


def make_another(name: str, path: Path, stage: Path, people: Path) -> None:
    """Write a checkpoint that does not fit to `path`."""
    whole = checkpoint.checkpoint_path(stage, 6)
    loaded = checkpoint.load(whole)
    ours = loaded["birthplace_lm"]
    if name in ("another attention", "another size"):
        overrides = ["attention=synthesizer"] if "attention" in name else ["model.n_embd=16"]
        folder = path.parent / "other"
        fit(quick(people, path.parent, *overrides), "finetune", folder)
        shutil.copy(checkpoint.checkpoint_path(folder, 6), path)
        sign(path)
    elif name == "another vocabulary":
        forge(path, {**loaded, "birthplace_lm": {**ours, "vocab": [*ours["vocab"][:-1], "漢"]}})
    elif name == "another version":
        forge(path, {**loaded, "birthplace_lm": {**ours, "format": 1}})
    elif name == "weights only":
        forge(path, {"state_dict": loaded["state_dict"]})
    elif name == "bare weights":
        forge(path, loaded["state_dict"])
    elif name == "without hash":
        shutil.copy(whole, path)
    elif name == "text":
        path.write_text("dear diary\n")
        sign(path)
    elif name != "missing":
        content = {"empty": b"", "truncated": whole.read_bytes()[:5000]}.get(
            name, damaged(whole.read_bytes(), random.Random(4), "flipped")
        )
        path.write_bytes(content)
        shutil.copy(whole.with_name(whole.name + ".sha256"), path.with_name(path.name + ".sha256"))


NOT_MEANT = [
    ("missing", "no such checkpoint; give the path of a local file"),
    ("empty", "damaged: its 0 bytes do not match its SHA-256"),
    ("truncated", "damaged: its 5000 bytes do not match its SHA-256"),
    ("flipped", "damaged: its SIZE bytes do not match its SHA-256"),
    ("text", "cannot be loaded: BadZipFile: File is not a zip file"),
    ("without hash", "mine.ckpt.sha256 is missing beside it; copy both files of a checkpoint"),
    ("another attention", "belongs to another model: model.attention._target_ (birthplace_lm.models."),
    ("another size", "belongs to another model: model.n_embd (16 there, 32 here); give its attention= and"),
    ("another vocabulary", "its vocabulary of SYMBOLS is not the SYMBOLS symbols of the corpus"),
    ("another version", "has format 1 of another version of birthplace_lm; this version reads 3"),
    ("weights only", "contains only weights; expected a checkpoint of birthplace_lm"),
    ("bare weights", "contains no weights"),
]


@pytest.mark.parametrize(("meant", "key"), sampled(NOT_MEANT, ["resume", "init_from"]))
def test_a_checkpoint_that_cannot_be_meant(
    meant: tuple[str, str],
    key: str,
    stage: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, message = meant
    path = tmp_path / "mine.ckpt"
    make_another(name, path, stage, people)
    monkeypatch.setattr(app, "_log_to_console", lambda prefix: None)
    runs = tmp_path / "new"
    config = quick(people, runs, "pretrain=none", "stages.finetune.max_epochs=2", f"{key}={path}")
    with hydra_job():
        app.run(config)
    code = 4
    if key == "resume" and name in ("another attention", "another size"):  # the configurations differ too
        code, message = 2, "belongs to a run with another model."
    assert session.current().exit_code() == code
    shown = capsys.readouterr().err
    symbols = len(checkpoint.load(checkpoint.checkpoint_path(stage, 6))["birthplace_lm"]["vocab"])
    size = str(path.stat().st_size) if path.exists() else ""
    expected = message.replace("SIZE", size).replace("SYMBOLS", str(symbols))
    assert shown.startswith(f"error: {key}={path}: {expected}")
    assert shown.count("\n") == 1
    assert not runs.exists()
