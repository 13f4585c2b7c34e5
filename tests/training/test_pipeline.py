"""A run takes every decision once, writes nothing before all is checked, and says what went wrong first."""

import errno
import logging
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
from omegaconf import OmegaConf
from stage import without_waiting

from birthplace_lm.data.corpora import corpus as corpora
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError, InternalError
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import checkpoint, signals
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.runs.directory import stage_directory
from birthplace_lm.runs.identity import named_checkpoint, pretraining_directory, run_directory, with_inputs
from birthplace_lm.runs.metrics import STAGE_RESULT, StageResult
from birthplace_lm.training import pipeline, preflight, stage

STAGES = ("pretrain", "finetune")


def run(configure: Any, *overrides: str) -> Any:
    config = configure(*overrides)
    corpus = read_corpus(config.data, config.model.block_size)
    config = with_inputs(config, corpus.sha256)
    with without_waiting():
        pipeline.run(config, corpus)
    return config


def counted(patched: pytest.MonkeyPatch, owner: Any, name: str) -> Counter[Any]:
    """Count the calls of a function by their first argument, or by its class for `__init__`."""
    calls: Counter[Any] = Counter()
    original = getattr(owner, name)

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        calls[type(first) if name == "__init__" else first] += 1
        return original(first, *args, **kwargs)

    patched.setattr(owner, name, call)
    return calls


def test_networks_and_trainers_are_built_twice_per_stage(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There were five of each in a run of two stages."""
    networks, trainers = counted(monkeypatch, GPT, "__init__"), counted(monkeypatch, L.Trainer, "__init__")
    run(configure)
    assert networks.total() <= 4
    assert trainers.total() <= 4


def test_a_resume_reads_a_checkpoint_twice(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was read or hashed five times."""
    config = run(configure, "checkpoint.every_n_steps=2")
    folder = run_directory(config) / "finetune"
    last = checkpoint.list_checkpoints(folder)[0]
    (folder / "result.json").unlink()
    (folder.parent / "metrics.json").unlink()
    checkpoint.remove(last)  # as if the run had been killed before its last checkpoint
    with monkeypatch.context() as patch:
        loads, hashes = counted(patch, checkpoint, "load"), counted(patch, checkpoint, "is_intact")
        run(configure, "checkpoint.every_n_steps=2")
    reads = loads + hashes
    assert reads.total() > 0
    assert {path.name: count for path, count in reads.items() if count > 2} == {}


def test_a_corpus_is_read_once(configure: Any, people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora._read.cache_clear()
    reads = counted(monkeypatch, corpora, "read_documents")
    config = configure()
    first = read_corpus(config.data, config.model.block_size)
    assert read_corpus(config.data, config.model.block_size) is first
    assert reads.total() == 1


@pytest.mark.parametrize(
    "override", ["seed=1", "stages.pretrain.max_epochs=4", "stages.pretrain.learning_rate=1e-3"]
)
def test_the_checkpoint_of_another_run_is_refused_and_not_copied(configure: Any, override: str) -> None:
    """Once its weights became the shared pretraining of the new configuration."""
    only = ("stages.finetune.enabled=false", "stages.pretrain.max_epochs=1")
    file = checkpoint.list_checkpoints(pretraining_directory(run(configure, *only)))[0]
    root = file.parents[2]
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match=rf"resume={file}: belongs to a run with another {override[:4]}"):
        run(configure, *only, override, f"resume={file}")
    assert sorted(root.rglob("*")) == before
    run(configure, *only, f"resume={file}")  # its own run may continue from it


def test_a_stage_that_learns_nothing_says_so(configure: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The rate of the last step is 0, and so is that of the only one."""
    config = run(configure, "pretrain=none", "trainer.max_steps=1")
    assert StageResult.read(run_directory(config) / "finetune" / STAGE_RESULT).steps == 1
    assert "finetune: its schedule has a learning rate of 0 at every step" in caplog.text
    caplog.clear()
    run(configure, "pretrain=none", "trainer.max_steps=2")
    assert "learning rate of 0" not in caplog.text


def failure(*errors: Exception) -> Exception:
    """The last of several exceptions, each raised while the one before was handled."""
    try:
        if len(errors) > 1:
            try:
                raise failure(*errors[:-1])
            except Exception:
                raise errors[-1]  # noqa: B904
        raise errors[0]
    except Exception as error:
        return error


def test_the_first_exception_is_told(tmp_path: Path) -> None:
    """A full /dev/shm once ended with "Please call iter(combined_loader) first"."""
    first = RuntimeError("DataLoader worker was killed by signal: Bus error")
    error = pipeline.to_birthplace_error(failure(first, RuntimeError("Please call iter first")), tmp_path)
    assert isinstance(error, InternalError)
    assert str(error).startswith("RuntimeError: DataLoader worker was killed by signal: Bus error; then")
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    error = pipeline.to_birthplace_error(failure(full, RuntimeError("later")), tmp_path)
    assert isinstance(error, CheckpointError)
    assert str(error) == "/data/x: No space left on device"
    with mock.patch.object(signals, "pending_signal", return_value=15):
        assert pipeline.to_birthplace_error(first, tmp_path).exit_code == 143


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
)
def test_a_connection_is_no_disk(error: Exception, tmp_path: Path) -> None:
    """Bug: a logger whose server was down ended a run with the code of checkpoints and disks."""
    told = pipeline.to_birthplace_error(failure(error), tmp_path)
    assert type(told) is InternalError
    assert str(error) in str(told)


def test_lightning_is_quiet_only_while_it_works(configure: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: an import of this package changed the level of Lightning's log for the whole process."""
    level = logging.getLogger("lightning.pytorch").level
    assert level == logging.INFO, "as Lightning sets it"
    run(configure, "pretrain=none")
    assert logging.getLogger("lightning.pytorch").level == level
    assert not [record for record in caplog.records if record.name.startswith("lightning")]


def test_a_run_keeps_the_library_that_its_pretraining_began_with(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: each start measured anew, so that a run that was killed changed it for its second half."""
    monkeypatch.setattr(preflight, "faster_library", lambda _: "mkl")
    run(configure)
    libraries = {}

    def fit_stage(plan: Any, *args: Any) -> Any:
        libraries[plan.name] = plan.float32_products
        return stage.fit_stage(plan, *args)

    monkeypatch.setattr(preflight, "faster_library", lambda _: "onednn")
    monkeypatch.setattr(pipeline, "fit_stage", fit_stage)
    run(configure, "stages.finetune.max_epochs=1")
    assert libraries["finetune"] == "mkl"
    run(configure, "stages.finetune.max_epochs=3", "float32_products=onednn")
    assert libraries["finetune"] == "onednn"


def test_the_cost_of_all_stages_so_far(configure: Any) -> None:
    """Bug: curves after init_from=RUN began with the characters of its last stage alone."""
    directory = run_directory(run(configure))
    results = [StageResult.read(stage_directory(directory, name) / STAGE_RESULT) for name in STAGES]
    last = LoadedCheckpoint.read(checkpoint.list_checkpoints(directory / "finetune")[0])
    assert stage._cost_until(last)["characters"] == sum(result.characters for result in results)


def test_a_stage_may_be_named_where_there_are_no_links(configure: Any) -> None:
    """Bug: the text file that stands for the link was taken for a checkpoint."""
    directory = run_directory(run(configure))
    expected = named_checkpoint("extend_from", str(directory / "pretrain")).resolve()
    target = os.readlink(directory / "pretrain")
    (directory / "pretrain").unlink()
    (directory / "pretrain").write_text(f"{target}\n")
    assert named_checkpoint("extend_from", str(directory / "pretrain")).resolve() == expected


@pytest.mark.parametrize(
    ("devices", "first"),
    [(1, 0), (2, 0), ("2", 0), ("auto", 0), (-1, 0), ([1], 1), ([2, 3], 2), ("2,", 2), ("2,3", 2)],
)
def test_the_first_device_answers_the_questions(
    devices: Any, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: GPU 0 did, also when another run had it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = OmegaConf.create({"trainer": {"accelerator": "gpu", "devices": devices}})
    assert pipeline._first_device(config) == f"cuda:{first}"
    config.trainer.accelerator = "cpu"
    assert pipeline._first_device(config) == "cpu"
