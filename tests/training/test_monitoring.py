"""Early stopping and the best checkpoint; resume with callbacks that keep state."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from stage import Stop, StopAt, digest, fit, quick
from torch import Tensor

from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.metrics import STAGE_RESULT, StageResult
from birthplace_lm.training.callbacks.monitoring import EarlyStopping

NAMES = ("val_loss", "exact_match", "bits/extractable")
NOISE = "+callbacks.noise={_target_:own_parts.GradientNoise,_partial_:true}"


def stopping(people: Path, root: Path, *overrides: str) -> DictConfig:
    """Finetuning of up to six epochs of 3 steps that stops early, with a callback that changes gradients.

    The learning rate is so small that no answer is right: the first validation is never beaten.
    """
    return quick(
        people,
        root,
        "plugins=[own_parts]",
        "callbacks=[early_stopping,best_checkpoint]",
        "callbacks.early_stopping.patience=2",
        NOISE,
        "pretrain=none",
        "stages.finetune.max_epochs=6",
        "stages.finetune.check_val_every_n_epoch=1",
        "stages.finetune.learning_rate=1e-5",
        *overrides,
    )


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    fit(stopping(people, root), "finetune", root / "stage")
    return root / "stage"


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "last"),
    [
        ("max", 0.0, [0.1, 0.2, 0.2, 0.3, 0.3, 0.3], 6),
        ("min", 0.0, [2.0, 1.0, 1.5, 0.9, 1.0, 0.9], 6),
        ("max", 0.05, [0.10, 0.12, 0.14], 3),
        ("min", 0.0, [1.0, float("nan"), float("nan")], 3),
    ],
)
def test_patience_counts_from_the_last_improvement(
    mode: str, min_delta: float, values: list[float], last: int
) -> None:
    metric = {"max": "exact_match", "min": "val_loss"}[mode]
    watcher = EarlyStopping(metric, mode, patience=2, min_delta=min_delta)
    trainer = Mock(sanity_checking=False, should_stop=False)
    for number, value in enumerate(values, 1):
        trainer.callback_metrics, trainer.global_step = {f"finetune/{metric}": value}, number
        watcher.on_validation_end(trainer, Mock(stage="finetune"))
        assert trainer.should_stop == (number == last)


def test_a_stage_without_a_finite_value_may_stop_too(caplog: pytest.LogCaptureFixture) -> None:
    """Bug: the best value, None, was no number for the log, which printed a traceback."""
    watcher = EarlyStopping("val_loss", "min", patience=1, min_delta=0.0)
    trainer = Mock(sanity_checking=False, callback_metrics={"finetune/val_loss": math.nan})
    with caplog.at_level(logging.INFO):
        watcher.on_validation_end(trainer, Mock(stage="finetune"))
    assert caplog.messages == ["early stopping: the best finite val_loss was none"]


def test_the_log_names_what_may_have_ended_a_stage(
    people: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It named best_checkpoint too, which ends nothing."""
    with caplog.at_level(logging.INFO):
        fit(stopping(people, tmp_path), "finetune", tmp_path / "stage")
    assert "finetune ended after step 9 of 18, by callbacks.early_stopping or callbacks.noise" in caplog.text


def test_a_stage_ends_early(whole: Path) -> None:
    result = StageResult.read(whole / STAGE_RESULT)
    assert (result.epochs, result.steps) == (3, 9), "the first validation and a patience of two"
    state = checkpoint.load(checkpoint.list_checkpoints(whole)[0])["callbacks"]
    assert state["early_stopping"] == {"best": 0.0, "best_step": 3, "waited": 2}
    assert checkpoint.load(checkpoint.best_path(whole))["global_step"] == 3


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 5),  # between two validations
        ("on_train_epoch_end", 9),  # decided to stop, and not yet saved
    ],
)
def test_a_stopped_stage_ends_as_one_left_alone(
    whole: Path, people: Path, tmp_path: Path, hook: str, step: int
) -> None:
    config = stopping(people, tmp_path)
    with pytest.raises(Stop):
        fit(config, "finetune", tmp_path / "stage", StopAt(hook, step))
    fit(config, "finetune", tmp_path / "stage")
    assert digest(tmp_path / "stage") == digest(whole)


def test_a_stage_killed_after_its_last_checkpoint_trains_no_further(
    whole: Path, people: Path, tmp_path: Path
) -> None:
    stage = shutil.copytree(whole, tmp_path / "stage")
    (stage / STAGE_RESULT).unlink()
    fit(stopping(people, whole.parent), "finetune", stage)
    assert StageResult.read(stage / STAGE_RESULT).steps == 9
    assert digest(stage) == digest(whole)


def test_a_callback_without_its_state_is_not_exact(whole: Path, people: Path, tmp_path: Path) -> None:
    """So that the tests above can fail: the same callback, its state not saved."""
    config = stopping(people, tmp_path, NOISE.replace("GradientNoise", "Forgetful"))
    with pytest.raises(Stop):
        fit(config, "finetune", tmp_path / "stage", StopAt("on_train_batch_end", 5))
    fit(config, "finetune", tmp_path / "stage")
    ends = [checkpoint.load(checkpoint.list_checkpoints(folder)[0]) for folder in (whole, tmp_path / "stage")]
    assert not torch.equal(*(end["state_dict"]["model.head.weight"] for end in ends))


class Recorder(L.Callback):
    """The weights that each validation has seen, and its loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[str, Tensor]]] = []
        self._weights: dict[str, Tensor] = {}

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any
    ) -> None:
        self._weights = {name: value.clone() for name, value in pl_module.model.state_dict().items()}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append((float(trainer.callback_metrics["finetune/val_loss"]), self._weights))


def test_best_holds_the_weights_of_the_best_validation(people: Path, tmp_path: Path) -> None:
    """With a moving average they are those of the average, and pruning leaves them."""
    config = quick(
        people,
        tmp_path,
        "callbacks=best_checkpoint",
        "callbacks.best_checkpoint.monitor=val_loss",
        "callbacks.best_checkpoint.mode=min",
        "pretrain=none",
        "stages.finetune.max_epochs=8",
        "stages.finetune.check_val_every_n_epoch=1",
        "stages.finetune.learning_rate=0.03",
        "stages.finetune.ema_decay=0.5",
        "schedule=cosine_2021",
        "checkpoint.every_n_steps=1",
    )
    recorder = Recorder()
    fit(config, "finetune", tmp_path / "run" / "finetune", recorder)
    losses = [loss for loss, _ in recorder.seen]
    best = losses.index(min(losses))
    assert best < len(losses) - 1, "otherwise the last is the best"
    folder = tmp_path / "run" / "finetune"
    file = checkpoint.best_path(folder)
    weights = model_state_dict(checkpoint.load(file))
    for name, value in recorder.seen[best][1].items():
        assert torch.equal(weights[name], value), name
    assert [checkpoint.parse_step(path) for path in checkpoint.list_checkpoints(folder)] == [24, 23]
    last = checkpoint.latest_intact(folder)
    assert last is not None
    assert last.name == "step-00000024.ckpt", "resume never takes best.ckpt"
    (tmp_path / "run" / "config.yaml").write_text(checkpoint.load(file)["birthplace_lm"]["config"])
    for which, expected in (("best", file), ("last", last)):
        model = TrainedModel.from_run(tmp_path / "run", checkpoint=which).model
        tensors = model_state_dict(checkpoint.load(expected))
        assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    other_config = [f"{key}={file}" for key in ("resume", "extend_from")]
    for override in other_config:
        with pytest.raises(CheckpointError, match=r"best\.ckpt: the best validation"):
            fit(quick(people, tmp_path, override), "finetune", tmp_path / "other")
    file.unlink()
    with pytest.raises(CheckpointError, match="train with callbacks=best_checkpoint"):
        TrainedModel.from_run(tmp_path / "run", checkpoint="best")


def test_the_points_of_a_validation_have_one_step(people: Path, tmp_path: Path) -> None:
    """Bug: between accumulated batches ours were one step before Lightning's, at first -1."""
    config = quick(
        people,
        tmp_path,
        "pretrain=none",
        "logger=[tensorboard,csv]",
        "trainer.accumulate_grad_batches=3",
        "trainer.val_check_interval=2",
    )
    fit(config, "finetune", tmp_path / "stage")
    rows = [row.split(",") for row in (tmp_path / "stage" / "curves.csv").read_text().splitlines()[1:]]
    steps = {name: [int(step) for step, metric, _ in rows if metric == f"finetune/{name}"] for name in NAMES}
    assert len(steps["val_loss"]) == 3
    assert steps["val_loss"] == steps["exact_match"] == steps["bits/extractable"]
    assert min(steps["val_loss"]) == 0


@pytest.mark.parametrize("limit", [0, 1])
def test_saves_between_validations_that_do_not_happen(people: Path, tmp_path: Path, limit: int) -> None:
    """Bug: with `limit_val_batches=0` a signal waited for the end of the epoch, for want of a validation."""
    config = quick(
        people,
        tmp_path,
        "pretrain=none",
        "checkpoint.every_n_steps=1",
        f"trainer.limit_val_batches={limit}",
        "trainer.val_check_interval=1",
    )
    with pytest.raises(Stop):
        fit(config, "finetune", tmp_path / "stage", StopAt("on_train_batch_start", 1))
    assert checkpoint.parse_step(checkpoint.list_checkpoints(tmp_path / "stage")[0]) == 1


def test_a_new_attempt_removes_the_best_of_the_one_before(people: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    file = checkpoint.best_path(folder)
    file.write_text("stale")
    config = quick(
        people, tmp_path, "callbacks=best_checkpoint", "pretrain=none", "trainer.limit_val_batches=0"
    )
    fit(config, "finetune", folder)
    assert not file.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.early_stopping.patience=0", "patience=0: must be 1 or more"),
        ("callbacks.early_stopping.monitor=loss", "monitor=loss: unknown; valid: exact_match, val_loss"),
        ("callbacks.early_stopping.mode=up", "mode=up: must be max for monitor=exact_match"),
        ("callbacks.early_stopping.monitor=val_loss", "mode=max: must be min for monitor=val_loss"),
        ("callbacks.early_stopping.min_delta=-1.0", "min_delta=-1.0: must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(people: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=f"callbacks.early_stopping.{message}"):
        fit(stopping(people, tmp_path, override), "finetune", tmp_path)
