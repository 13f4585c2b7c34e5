"""Checkpoints and run directories of somebody who means harm: read, refused, never run."""

import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from omegaconf import DictConfig
from stage import digest, fit, forge, quick, run, sign

import birthplace_lm
from birthplace_lm.config.compose import compose, load_saved, resolve_and_validate
from birthplace_lm.errors import BirthplaceError, CheckpointError, InputError
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.directory import check_run_dir

SHORT = ("pretrain=none", "stages.finetune.max_epochs=2", "stages.finetune.check_val_every_n_epoch=1")


class Harm(BaseException):
    """Something was done that a file asked for. No `except Exception` hides it."""


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no other program."""

    def refuse(*args: Any, **options: Any) -> None:
        raise Harm(f"{args} {options}")

    for owner, name in (
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
        (socket, "create_connection"),
        (os, "system"),
        (os, "popen"),
        (subprocess.Popen, "__init__"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setenv("SECRET", "the-secret")


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has touched."""
    root = tmp_path_factory.mktemp("finished")
    run(quick(people, root, f"run_dir={root / 'run'}", *SHORT))
    return root / "run"


@pytest.fixture
def victim(finished: Path, tmp_path: Path) -> Path:
    """A copy to do something to."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def config(people: Path, tmp_path: Path) -> DictConfig:
    return quick(people, tmp_path, *SHORT)


def everything(folder: Path) -> dict[str, str]:
    """What there is, but for the checkpoints of a stage."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Does:
    """Pickled, a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Pickled, a call that comes with the state."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return torch.nn.Parameter, (torch.zeros(1),), Does(*self.call)


PLACES = [
    ("state_dict",),
    ("state_dict", "model.head.weight"),
    ("hyper_parameters",),
    ("datamodule_hyper_parameters",),
    ("callbacks",),
    ("callbacks", "curves"),
    ("birthplace_lm",),
    ("birthplace_lm", "config"),
    ("birthplace_lm", "environment"),
    ("optimizer_states",),
    ("loops",),
    ("BirthplaceDataModule",),
    ("pytorch-lightning_version",),
    ("anything",),
]


@pytest.mark.parametrize(
    ("place", "kind"),
    [*((place, Does) for place in PLACES), *((place, SetsState) for place in PLACES[1:7:5])],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_what_is_pickled_in_a_checkpoint_is_not_called(
    place: tuple[str, ...], kind: type[Does], victim: Path, config: DictConfig, tmp_path: Path
) -> None:
    path = checkpoint.checkpoint_path(victim / "finetune", 6)
    loaded = checkpoint.load(path)
    node = loaded
    for key in place[:-1]:
        node = node[key]
    harm = tmp_path / "harm"
    calls: tuple[Any, ...] = (
        (os.posix_spawn, "/bin/mkdir", ["mkdir", str(harm)], {}),
        (exec, f"open({str(harm)!r}, 'w')"),
        (Path.touch, harm),
        (torch.load, "https://example.org/x.ckpt"),
        (shutil.rmtree, str(victim)),
        (os.mkdir, str(harm)),
    )
    for call in calls:
        node[place[-1]] = kind(*call)
        forge(path, loaded)
        with pytest.raises(CheckpointError, match="it contains more than plain data"):
            checkpoint.load(path)
        assert not harm.exists()
        assert path.exists()
    with pytest.raises(CheckpointError, match="it contains more than plain data"):
        TrainedModel.from_run(victim)
    (victim / "finetune" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="it contains more than plain data"):
        fit(config, "finetune", victim / "finetune")


def test_a_bare_pickle_is_not_called(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.ckpt"
    path.write_bytes(pickle.dumps(Does(os.mkdir, str(tmp_path / "harm"))))
    sign(path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()


def test_what_lightning_would_build_from_a_checkpoint_is_not_built(
    finished: Path, victim: Path, config: DictConfig
) -> None:
    folder = victim / "finetune"
    path = checkpoint.checkpoint_path(folder, 4)
    loaded = checkpoint.load(path)
    evil = {"_target_": "os.system", "class_path": "os.system", "_class_path": "os.system", "command": "x"}
    forge(
        path,
        {
            **loaded,
            "_instantiator": "os.system",
            "_class_path": "os.system",
            "class_path": "os.system",
            "hparams_name": "os.system",
            "hyper_parameters": {**evil, "_instantiator": "os.system"},
            "datamodule_hyper_parameters": {**evil, "_instantiator": "os.system"},
            "hparams_type": "os.system",
        },
    )
    for left in (*folder.glob("step-00000006*"), folder / "result.json"):
        left.unlink()
    fit(config, "finetune", folder)
    assert digest(folder) == digest(finished / "finetune")


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "archive/../../../evil", "..\\evil", "a/data.pkl"]
)
def test_names_in_the_archive_lead_nowhere(name: str, victim: Path, tmp_path: Path) -> None:
    path = checkpoint.checkpoint_path(victim / "finetune", 6)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    sign(path)
    before = everything(tmp_path)
    try:
        checkpoint.load(path)
        TrainedModel.from_run(victim)
    except BirthplaceError:
        pass
    assert everything(tmp_path) == before


def test_links_in_a_run_directory_spoil_nothing(
    finished: Path, victim: Path, config: DictConfig, tmp_path: Path
) -> None:
    """Of checkpoints, of what is about to be written, and of the lock."""
    precious = tmp_path / "precious"
    shutil.copytree(finished / "finetune", precious)
    (precious / "thesis.tex").write_text("years of work")
    before = everything(precious)
    folder = victim / "finetune"
    for path in folder.iterdir():
        path.unlink()
    for name in ("step-00000004.ckpt", "step-00000004.ckpt.sha256"):
        (folder / name).symlink_to(precious / name)
    (folder / "step-00000005.ckpt").symlink_to("/dev/zero")
    (folder / "step-00000005.ckpt.sha256").write_text("0" * 64)
    os.mkfifo(folder / "step-00000003.ckpt")
    (folder / "step-00000003.ckpt.sha256").write_text("0" * 64)
    for name in ("step-00000006.ckpt.tmp", "result.json.tmp", "step-00000006.ckpt.sha256.tmp"):
        (folder / name).symlink_to(precious / "thesis.tex")
    fit(config, "finetune", folder)
    assert digest(folder) == digest(finished / "finetune")
    for name in ("lock", "status.json.tmp", "config.yaml.tmp", "metrics.json.tmp"):
        (victim / name).unlink(missing_ok=True)
        (victim / name).symlink_to(precious / "thesis.tex")
    (victim / "status.json").unlink()
    saved = load_saved(victim / "config.yaml")
    run(load_again(saved, run_dir=str(victim)))
    assert everything(precious) == before


def load_again(config: DictConfig, **changes: str) -> DictConfig:
    return resolve_and_validate(DictConfig(dict(config) | changes))


def test_a_link_at_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "step-00000001.ckpt.tmp").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.save({}, tmp_path / "step-00000001.ckpt")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


TARGETS = [
    "os.system",
    "subprocess.Popen",
    "torch.load",
    "builtins.eval",
    "lightning.Trainer",
    "birthplace_lm.data.corpora.synthetic.write_biographies",
    "birthplace_lm.runs.atomic_files.atomic_write_text",
    "birthplace_lm.runs.atomic_files.remove_temp_files",
    "birthplace_lm.runs.atomic_files.os.system",
    "birthplace_lm.runs.checkpoint.torch.load",
    "birthplace_lm.runs.checkpoint.load",
    "birthplace_lm.training.callbacks.checkpointing.VerifiedCheckpointIO",
    "birthplace_lm.training.distributed.launcher.fit_in_processes",
    "birthplace_lm.cli.commands.main",
    "birthplace_lm.analysis.report.page.curves_figure",
    "birthplace_lm.runs.directory.RunDirectory",
    "birthplace_lm.models.gpt.GPT",
    "birthplace_lm.models.attention",
    "birthplace_lm.models.attention.vanilla.torch.load",
    "birthplace_lm.models.attention.vanilla.nn",
    "birthplace_lm.training.optimizers.orthogonalize",
    "birthplace_lm.data.corpora.corpus.read_corpus",
    "birthplace_lm.data.corpora.qa_files.Question",
    "birthplace_lm.models.attention..vanilla.VanillaAttention",
    "../models/attention/vanilla.VanillaAttention",
]
OURS = compose(["data.root=null"])
FACTORIES = {
    "model.attention": "birthplace_lm.models.attention.vanilla.VanillaAttention",
    "optimizer": "birthplace_lm.training.optimizers.muon",
    "stages.finetune.dataset": "birthplace_lm.data.datamodule.QuestionAnsweringDataModule",
    "stages.pretrain.schedule": "birthplace_lm.training.lr_schedules.cosine",
    "stages.pretrain.dataset.spans": "birthplace_lm.data.masking.spans.SalientSpans",
}


def refused(victim: Path, text: str) -> str:
    """What is said about a run with this config.yaml, by everything that reads it."""
    (victim / "config.yaml").write_text(text)
    before = everything(victim)
    with pytest.raises(InputError) as caught:
        birthplace_lm.load(victim)
    message = str(caught.value)
    assert message.startswith(f"{victim / 'config.yaml'}: ")
    assert "the-secret" not in message
    with pytest.raises(InputError):
        check_run_dir(victim, OURS)
    assert everything(victim) == before
    return message


@pytest.mark.parametrize("key", FACTORIES)
def test_a_config_names_only_what_belongs_in_its_place(key: str, victim: Path, amount: Any) -> None:
    text = (victim / "config.yaml").read_text()
    own = f"_target_: {FACTORIES[key]}\n"
    assert own in text
    targets = TARGETS if key == "model.attention" else TARGETS[: amount(3, 8)]
    for target in (*targets, *(other for other in FACTORIES.values() if other != FACTORIES[key])):
        message = refused(victim, text.replace(own, f"_target_: {target}\n"))
        assert f"{key}._target_={target}: not allowed" in message


def test_a_trainer_is_a_trainer(victim: Path) -> None:
    text = (victim / "config.yaml").read_text()
    for target in (*TARGETS[:8], *FACTORIES.values()):
        if target != "lightning.Trainer":
            message = refused(victim, text.replace("_target_: lightning.Trainer\n", f"_target_: {target}\n"))
            assert f"trainer._target_={target}: not allowed" in message


VALUES = [
    "${oc.env:SECRET}",
    "https://example.org/x",
    "!!python/object/apply:os.system [x]",
    "${oc.env:SECRET,x}",
    '"\\x24{oc.env:SECRET}"',
    "'${oc.decode:${oc.env:SECRET}}'",
    "${seed}",
    "!!python/object/new:subprocess.Popen [[x]]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary aGFybQ==",
    "http://169.254.169.254/latest",
    "s3://bucket/x",
    "[1, 2]",
    "{a: b}",
    '"a\\0b"',
]


@pytest.mark.parametrize(
    ("key", "value"),
    [*(("run_dir", value) for value in VALUES)]
    + [(key, value) for key in ("runs_root", "resume", "init_from", "root") for value in VALUES[:3]],
)
def test_a_config_looks_up_nothing(key: str, value: str, victim: Path) -> None:
    text = (victim / "config.yaml").read_text()
    changed = re.sub(rf"^( *{key}:) .*$", lambda match: f"{match[1]} {value}", text, flags=re.MULTILINE)
    assert changed != text
    refused(victim, changed)


def nested(depth: int) -> str:
    return "model: " + "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "a: [",
        "\x00",
        "a: &x [1]\nb: *x",
        "\n".join(
            ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))]
        ),
        nested(100),
        nested(600),
        "? [1]\n: 2",
        "{1: 2}",
        "seed: 1e999",
        "seed: " + "9" * 5000,
        "seed: 1\nseed: 2",
        "--- 1\n--- 2",
        "model: ???",
        "labels: {attention: ../../evil, pretrain: x, data: y}",
    ],
    ids=range(17),
)
def test_a_config_that_is_none(text: str, victim: Path) -> None:
    refused(victim, text)


def test_a_config_in_another_encoding(victim: Path) -> None:
    for content in (b"\xff\xfe\x00", b"seed: \xe9", b"\x1f\x8b" * 100):
        (victim / "config.yaml").write_bytes(content)
        with pytest.raises(InputError, match=r"config\.yaml: "):
            birthplace_lm.load(victim)


@pytest.mark.parametrize("command", ["ask", "predict"])
def test_the_commands_say_so_in_one_line(
    command: str,
    victim: Path,
    people: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["Ada Lovelace"] if command == "ask" else [str(people / "dev.tsv")]
    assert run_command(command, victim, *arguments) == 0
    capsys.readouterr()
    text = (victim / "config.yaml").read_text()
    own = FACTORIES["model.attention"]
    (victim / "config.yaml").write_text(text.replace(own, "os.system"))
    assert run_command(command, victim, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {victim / 'config.yaml'}: model.attention._target_=os.system")
    assert output.err.count("\n") == 1
    (victim / "config.yaml").write_text(text)
    path = checkpoint.checkpoint_path(victim / "finetune", 6)
    forge(path, Does(os.mkdir, str(victim / "harm")))
    assert run_command(command, victim, *arguments) == 4
    output = capsys.readouterr()
    assert output.err == f"error: {path}: cannot be loaded: it contains more than plain data\n"
    assert not (victim / "harm").exists()


@pytest.mark.parametrize("sizes", [("n_embd", 100_000), ("n_layer", 1000), ("block_size", 1_000_000)])
def test_a_config_of_a_model_that_fits_nowhere(sizes: tuple[str, int], victim: Path) -> None:
    key, value = sizes
    text = (victim / "config.yaml").read_text()
    (victim / "config.yaml").write_text(re.sub(rf"\b{key}: \d+", f"{key}: {value}", text))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        birthplace_lm.load(victim)


METRICS: list[Any] = [
    "{",
    "",
    "[]",
    "3",
    "{}",
    '{"dev": 3}',
    "\x00",
    "[" * 100_000,
]


@pytest.mark.parametrize("text", METRICS, ids=range(len(METRICS)))
def test_a_report_of_metrics_that_are_none(
    text: str, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (victim / "metrics.json").write_text(text)
    before = everything(victim)
    assert run_command("report", victim) == 0
    assert "unreadable: " in capsys.readouterr().out
    assert everything(victim) == before


def test_a_report_shows_no_escapes(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((victim / "metrics.json").read_text())
    metrics["attention"] = "\x1b]0;evil\x07\x1b[2J"
    (victim / "metrics.json").write_text(json.dumps(metrics))
    run_command("report", victim)
    assert "\x1b" not in capsys.readouterr().out


URLS = ["https://example.org/x", "http://[::1]:80/x", "s3://bucket/x", "gs://b/x", "hdfs://h/x", "file:///x"]


@pytest.mark.parametrize(
    ("key", "url"),
    [*(("run_dir", url) for url in URLS)]
    + [(key, URLS[0]) for key in ("data.root", "runs_root", "resume", "init_from")],
)
def test_a_url_is_refused(key: str, url: str) -> None:
    with pytest.raises(InputError) as caught:
        compose(["pretrain=none", f"{key}='{url}'"])
    assert str(caught.value).startswith(f"{key}={url}: a URL")


@pytest.mark.parametrize("key", ["attention", "pretrain", "data"])
@pytest.mark.parametrize("name", ["../evil", "..", "/tmp/evil", "~"])
def test_names_stay_below_the_root(key: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"labels\.{key}="):
        compose([f"labels.{key}='{name}'"])


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a relative path would lead to."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert list(here.iterdir()) == []
