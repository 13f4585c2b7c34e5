"""A stage that is fitted in this process, or in a child that can be killed, and what it leaves."""

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import lightning as L
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write
from tensorboard.summary.writer import event_file_writer

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.identity import with_inputs
from birthplace_lm.runs.metrics import RunMetrics, Score, StageResult
from birthplace_lm.training import components, pipeline
from birthplace_lm.training.plan import StagePlan
from birthplace_lm.training.preflight import preflight
from birthplace_lm.training.stage import fit_stage

METRICS = RunMetrics(
    attention="vanilla",
    pretrain="none",
    data="biographies",
    seed=0,
    data_sha256={"train": "ab"},
    weights_sha256="cd",
    vocab_size=60,
    parameters=1000,
    dev=Score(3, 8),
    majority_answer="Lisbon",
    baseline=Score(2, 8),
    stages={"pretrain": StageResult(), "finetune": StageResult(6, 2, 900, 1.5, 0.25)},
    questions=8,
    evaluate_seconds=0.5,
    evaluate_precision="float32",
)


def sampled(*axes: Sequence[Any], every: int = 2) -> list[Any]:
    """For `parametrize`: every second combination (or third, ...); --torture runs the others, too.

    Every second are those whose positions have an even sum: of three axes or more, every value of one still
    meets every value of another.
    """
    return [
        pytest.param(
            *(value for _, value in chosen),
            marks=pytest.mark.torture if sum(place for place, _ in chosen) % every else (),
        )
        for chosen in itertools.product(*map(enumerate, axes))
    ]


def quick(people: Path, root: Path, *overrides: str) -> DictConfig:
    """A configuration whose stages save after every second step: 8 of pretraining, 6 of finetuning."""
    return composed(
        root / "runs",
        (
            "model=tiny",
            "model.n_layer=1",
            f"data.root={people}",
            "stages.pretrain.max_epochs=2",
            "stages.pretrain.batch_size=8",
            "stages.finetune.max_epochs=2",
            "stages.finetune.batch_size=5",
            "trainer.accelerator=cpu",
            "trainer.log_every_n_steps=1",
            "checkpoint.every_n_steps=2",
            *overrides,
        ),
    )


def composed(runs_root: Path, overrides: tuple[str, ...]) -> DictConfig:
    """As `compose` with this `runs_root`; the same overrides are composed once."""
    assert not any(override.startswith("runs_root=") for override in overrides)
    config = _compose(overrides).copy()
    with read_write(config):
        config.runs_root = str(runs_root)
    return config


_compose = functools.cache(compose)


@contextmanager
def hydra_job() -> Iterator[None]:
    """What Hydra sets before it calls `app.run`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        HydraConfig.instance().set_config(hydra.compose("train", return_hydra_config=True))
    try:
        yield
    finally:
        HydraConfig.instance().cfg = None


@contextmanager
def without_waiting() -> Iterator[None]:
    """Many runs within a second: their event files are told apart by a count instead."""
    with (
        mock.patch.object(components, "_await_new_second"),
        mock.patch.object(event_file_writer._global_uid, "_value", next(_file_numbers), create=True),
    ):
        yield


_file_numbers = itertools.count(10**6, 1000)  # of as many digits all, since files are sorted by name


class Stop(BaseException):
    """Ends a stage without a chance to tidy up, as SIGKILL would."""


class StopAt(L.Callback):
    def __init__(self, hook: str, step: int) -> None:
        setattr(self, hook, lambda trainer, *args, **kwargs: self.stop(trainer, step))

    def stop(self, trainer: L.Trainer, step: int) -> None:
        if trainer.global_step == step:
            raise Stop


def fit(config: DictConfig, stage: str, folder: Path, *callbacks: L.Callback) -> None:
    """Train a stage as the pipeline does, from the newest checkpoint if there is one."""
    with without_waiting(), mock.patch.object(components, "progress", return_value=[*callbacks]):
        corpus = read_corpus(config.data, config.model.block_size)
        config = with_inputs(config, corpus.sha256)
        fit_stage(plan_of(stage, config, corpus, folder), corpus)


def continued(folder: Path, step: int, config: DictConfig, to: Path) -> Path:
    """Pretrain from the checkpoint that a folder has of this step, in a folder of its own."""
    to.mkdir()
    for file in folder.glob(f"step-{step:08d}.ckpt*"):
        shutil.copy(file, to)
    fit(config, "pretrain", to)
    return to


def plan_of(stage: str, config: DictConfig, corpus: Corpus, folder: Path) -> StagePlan:
    """The plan of one stage, in a folder of the test."""
    inputs = json.dumps([OmegaConf.to_container(config), corpus.sha256])
    if inputs not in _plans or config.resume.endswith(".ckpt") or config.init_from or config.extend_from:
        _plans.clear()
        _plans[inputs] = preflight(config, corpus)
    return replace(next(plan for plan in _plans[inputs] if plan.name == stage), directory=folder)


_plans: dict[str, list[StagePlan]] = {}  # of the last configuration: most tests fit it several times


def run(config: DictConfig, wait: bool = False) -> dict[str, Any]:
    """The whole pipeline as `train.py` starts it; the content of metrics.json."""
    corpus = read_corpus(config.data, config.model.block_size)
    with without_waiting():
        return pipeline.run(with_inputs(config, corpus.sha256), corpus, wait).to_dict()


def digest(folder: Path) -> str:
    """SHA-256 of all that the newest checkpoint holds, but for times and paths."""
    state = checkpoint.load(checkpoint.list_checkpoints(folder)[0])
    ours = {key: value for key, value in state["birthplace_lm"].items() if key in ("stage", "vocab", "data")}
    del state["callbacks"]["cost"]["seconds"]
    del state["callbacks"]["curves"]["event_files"]  # their names hold the time
    sha = hashlib.sha256()
    _add(sha, {**state, "birthplace_lm": ours})
    return sha.hexdigest()


def _add(sha: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        sha.update(str(value.dtype).encode() + value.numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            sha.update(str(key).encode())
            _add(sha, value[key])
    elif isinstance(value, list | tuple):
        sha.update(b"[")
        for item in value:
            _add(sha, item)
    else:
        sha.update(repr(value).encode())


def forked(work: Callable[[], None]) -> int:
    """Do it in a child; its exit code, negative for the signal that killed it, 1 for an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(600)  # ends what hangs
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sign(path: Path) -> None:
    """Write the hash that belongs to a checkpoint, as whoever forges one would."""
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")


def forge(path: Path, content: Any) -> None:
    """Save anything as a checkpoint with the right hash."""
    torch.save(content, path)
    sign(path)


def write_config(run_directory: Path, config: DictConfig) -> None:
    run_directory.mkdir(parents=True, exist_ok=True)
    (run_directory / "config.yaml").write_text(OmegaConf.to_yaml(config))
