"""A stage that stops anywhere and starts again ends as one that was left alone."""

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from program import curves
from stage import Stop, digest, plan_of, run, sampled
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.summary.writer import event_file_writer

from birthplace_lm.data.batching import EpochBatchDataset
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.metrics import METRICS_FILE, STAGE_RESULT
from birthplace_lm.training import components
from birthplace_lm.training import stage as stages
from birthplace_lm.training.callbacks import curves as curves_module

STAGES = ("pretrain", "finetune")
HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_save_checkpoint",
    "on_train_epoch_end",
    "on_train_end",
)


class Hooks(L.Callback):
    """Calls `before(trainer, name)` in every hook; the other callbacks' turn comes after."""

    def __init__(self, before: Callable[[L.Trainer, str], None]) -> None:
        for name in HOOKS:
            setattr(self, name, lambda trainer, *args, name=name, **kwargs: before(trainer, name))


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs within a second: their event files are told apart by a count, which has to sort as text."""
    monkeypatch.setattr(components, "_await_new_second", lambda folder: None)
    monkeypatch.setattr(event_file_writer._global_uid, "_value", 10**6, raising=False)


def fit(
    config: DictConfig,
    stage: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[L.Trainer, str], None] = lambda trainer, name: None,
) -> int:
    """Train, from the newest checkpoint if there is one; the optimizer step it began after."""
    began = []

    def note(trainer: L.Trainer, name: str) -> None:
        if name == "on_train_start":
            began.append(trainer.global_step)
        before(trainer, name)

    with monkeypatch.context() as patch:
        patch.setattr(components, "progress", lambda *args: [Hooks(note)])
        corpus = read_corpus(config.data, config.model.block_size)
        stages.fit_stage(plan_of(stage, config, corpus, folder), corpus)
    return began[0]


def assert_alike(folder: Path, whole: Path, when: str) -> None:
    assert digest(folder) == digest(whole), when
    assert curves(folder) == curves(whole), when
    one, other = (json.loads((f / STAGE_RESULT).read_text()) for f in (folder, whole))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}, when
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"], when


EVERY_STEP = {
    "synthesizer": ("attention=synthesizer",),
    "accumulate": ("trainer.accumulate_grad_batches=3",),
    "workers": ("stages.pretrain.num_workers=2", "stages.finetune.num_workers=2"),
    "ema": ("stages.pretrain.ema_decay=0.9", "stages.finetune.ema_decay=0.9"),
    "overfit": ("trainer.overfit_batches=2", "trainer.max_epochs=3"),
    "limited": ("trainer.limit_train_batches=2", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1"),
}
EVERY_HOOK = {
    "often": ("checkpoint.every_n_steps=1",),
    "mid-epoch validation": ("checkpoint.every_n_steps=2", "trainer.val_check_interval=0.5"),
    "validation across epochs": ("checkpoint.every_n_steps=2", "trainer.val_check_interval=2"),
    "seldom": ("checkpoint.every_n_steps=3", "trainer.max_steps=5", "trainer.log_every_n_steps=2"),
}


@pytest.mark.parametrize(("variant", "stage"), sampled(list(EVERY_STEP), STAGES))
def test_stopped_after_every_step(
    variant: str, stage: str, configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: Any
) -> None:
    """The suite stops after the first, the middle and the last but one."""
    config = configure("model.dropout=0.1", "checkpoint.every_n_steps=1", *EVERY_STEP[variant])
    whole = tmp_path / "whole"
    fit(config, stage, whole, monkeypatch)
    steps = checkpoint.parse_step(checkpoint.list_checkpoints(whole)[0])
    assert steps is not None
    assert steps > 1
    assert [step for step, _ in curves(whole)[f"{stage}/loss"]] == list(range(steps))
    if config.trainer.limit_train_batches:
        assert [step for step, _ in curves(whole)[f"{stage}/val_loss"]] == [1, 3, 5]
    for step in amount(sorted({1, steps // 2, steps - 1}), range(1, steps)):
        folder = tmp_path / f"stopped-{step}"

        def stop(trainer: L.Trainer, name: str, step: int = step) -> None:
            if name == "on_train_batch_start" and trainer.global_step == step:
                raise Stop

        with pytest.raises(Stop):
            fit(config, stage, folder, monkeypatch, stop)
        assert digest(folder) != digest(whole)
        assert fit(config, stage, folder, monkeypatch) == step
        assert_alike(folder, whole, f"after step {step}")


@pytest.mark.parametrize(("variant", "stage"), sampled(list(EVERY_HOOK), STAGES))
def test_stopped_in_every_hook(
    variant: str,
    stage: str,
    configure: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    amount: Any,
) -> None:
    """Between training, logging, validation and saving; and once more while it makes up for it.

    The suite stops in every fourth kind of hook, in the others in other variants, at places spread over the
    run; --torture stops at every place.
    """
    config = configure("model.dropout=0.1", "stages.pretrain.check_val_every_n_epoch=1", *EVERY_HOOK[variant])
    whole = tmp_path / "whole"
    passed: list[str] = []
    fit(config, stage, whole, monkeypatch, lambda trainer, name: passed.append(name))
    assert set(HOOKS) <= set(passed)
    draw = random.Random(f"{stage} {variant}")
    hooks = HOOKS[list(EVERY_HOOK).index(variant) :: 4]
    places = [draw.choice([count for count, name in enumerate(passed) if name == hook]) for hook in hooks]
    for count in amount(places, range(len(passed))):
        at = passed[count]
        folder = tmp_path / f"stopped-{count}"
        for more in (0, 3):
            left = [count + more]

            def stop(trainer: L.Trainer, name: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise Stop
                left[0] -= 1

            try:
                fit(config, stage, folder, monkeypatch, stop)
            except Stop:
                continue
            break
        fit(config, stage, folder, monkeypatch) if not (folder / STAGE_RESULT).is_file() else None
        assert_alike(folder, whole, f"stopped in hook {count}, {at}")


def test_the_last_checkpoint_of_another_run_is_all_there_is_to_do(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is trained, and so nothing saved: the run needs it in its own folder."""
    fit(configure(), "finetune", tmp_path / "one", monkeypatch)
    file = checkpoint.list_checkpoints(tmp_path / "one")[0]
    config = configure(f"resume={file}")
    for _ in range(2):  # started again, it is finished
        corpus = read_corpus(config.data, config.model.block_size)
        stages.fit_stage(plan_of("finetune", config, corpus, tmp_path / "two"), corpus)
        assert digest(tmp_path / "two") == digest(tmp_path / "one")
    assert caplog.text.count(f"finetune is finished, resume={file} has no effect") == 1


def test_a_checkpoint_that_a_link_names_stays(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: `resume=runs/RUN/pretrain/step-N.ckpt`, below a link, was removed when newer ones were saved."""
    often = "checkpoint.every_n_steps=1"
    fit(configure(often, "checkpoint.keep_last=10"), "finetune", tmp_path / "stage", monkeypatch)
    (tmp_path / "stage" / STAGE_RESULT).unlink()
    (tmp_path / "link").symlink_to("stage")
    named = tmp_path / "link" / checkpoint.list_checkpoints(tmp_path / "stage")[-1].name
    fit(configure(often, f"resume={named}"), "finetune", tmp_path / "stage", monkeypatch)
    assert named.is_file()


@pytest.mark.parametrize("name", ["keep.ckpt", "step-00000001.ckpt"])
def test_a_renamed_checkpoint_among_its_own_is_refused(name: str, configure: Any, tmp_path: Path) -> None:
    """Bug: it counted as step 0, so all other checkpoints were removed; then the log failed."""
    run(configure("pretrain=none"))
    (folder,) = (tmp_path / "runs").glob("*/finetune")
    (folder / STAGE_RESULT).unlink()
    (folder.parent / METRICS_FILE).unlink()
    last = checkpoint.list_checkpoints(folder)[0]
    for file in (last, last.with_name(f"{last.name}.sha256")):
        shutil.copy(file, file.with_name(file.name.replace(last.name, name)))
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=rf"{name}: holds step 6, so its name here must be {last.name}"):
        run(configure("pretrain=none", f"resume={folder / name}"))
    assert sorted(folder.iterdir()) == before
    shutil.copytree(folder, tmp_path / "elsewhere")
    run(configure("pretrain=none", f"resume={tmp_path / 'elsewhere' / name}"))


def test_another_next_batch_is_refused(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be after a change of the code or of torch's random numbers."""
    config = configure("checkpoint.every_n_steps=1")

    def stop(trainer: L.Trainer, name: str) -> None:
        if name == "on_train_batch_start" and trainer.global_step == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(config, "pretrain", tmp_path / "run", monkeypatch, stop)
    other = configure("checkpoint.every_n_steps=1", "stages.pretrain.length_bucket=1")
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        fit(other, "pretrain", tmp_path / "run", monkeypatch)
    monkeypatch.setattr(EpochBatchDataset, "fingerprint", lambda *args: "another")
    with pytest.raises(CheckpointError, match="is not the batch that followed the checkpoint"):
        fit(config, "pretrain", tmp_path / "run", monkeypatch)


def test_a_change_of_threads_is_said(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure("checkpoint.every_n_steps=1")

    def stop(trainer: L.Trainer, name: str) -> None:
        if name == "on_train_batch_start" and trainer.global_step == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(config, "pretrain", tmp_path / "run", monkeypatch, stop)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    fit(config, "pretrain", tmp_path / "run", monkeypatch)
    assert f"the last bits may differ: threads was {threads} and is {threads + 1}" in caplog.text


def test_the_speed_is_that_of_training_alone(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: what other callbacks do after a validation, such as pictures, counted as training."""
    now = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(now)))
    monkeypatch.setattr(curves_module, "time", clock)

    def work(trainer: L.Trainer, name: str) -> None:
        if name == "on_validation_end":
            for _ in range(10_000):
                next(now)

    fit(configure("stages.pretrain.check_val_every_n_epoch=1"), "pretrain", tmp_path, monkeypatch, work)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    speeds = [event.value for event in events.Scalars("pretrain/characters_per_second")]
    assert len(speeds) > 4
    assert min(speeds) > max(speeds) / 10


def test_every_event_file_has_its_beginning(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a resume removed the event file that its own logger had just begun."""

    def stop(trainer: L.Trainer, name: str) -> None:
        if name == "on_train_batch_start" and trainer.global_step == 2:
            raise Stop

    config = configure("checkpoint.every_n_steps=1")
    with pytest.raises(Stop):
        fit(config, "pretrain", tmp_path, monkeypatch, stop)
    fit(config, "pretrain", tmp_path, monkeypatch)
    files = sorted(tmp_path.glob(curves_module.EVENT_FILES))
    assert len(files) == 2
    assert all(b"brain.Event:2" in file.read_bytes()[:100] for file in files)
