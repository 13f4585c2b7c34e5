"""The moving average of the weights against one that is kept by hand."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stage import Stop, StopAt, fit

from birthplace_lm.config.compose import compose
from birthplace_lm.errors import InputError
from birthplace_lm.inference.weights import model_state_dict
from birthplace_lm.runs import checkpoint


class Witness(L.Callback):
    """Keeps the average in float64, and the weights that validations see."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self.validated: list[bool] = []
        self.steps = 0

    def _weights(self, module: Any) -> dict[str, torch.Tensor]:
        return {name: p.detach().double().clone() for name, p in module.model.named_parameters()}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.average = self._weights(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, now in self._weights(pl_module).items():
            self.average[name] = decay * self.average[name] + (1 - decay) * now

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        seen = self._weights(pl_module)
        self.validated.append(
            all(torch.allclose(seen[name], a, atol=1e-6) for name, a in self.average.items())
        )


def test_is_validated_and_kept(configure: Any, tmp_path: Path) -> None:
    config = configure("stages.finetune.ema_decay=0.8", "trainer.check_val_every_n_epoch=1")
    witness = Witness(0.8)
    fit(config, "finetune", tmp_path / "stage", witness)
    assert witness.steps == 6
    assert witness.validated
    assert all(witness.validated)
    averages = model_state_dict(checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stage")[0]))
    for name, average in witness.average.items():
        torch.testing.assert_close(averages[name].double(), average, atol=1e-6, rtol=0)


def test_a_stage_resumed_without_time_left_ends_with_the_average(configure: Any, tmp_path: Path) -> None:
    """Bug: it ended before its training began, and evaluation got the raw weights."""
    numbers = ("stages.finetune.ema_decay=0.9", "checkpoint.every_n_steps=1", "trainer.max_time=00:01:00:00")
    with pytest.raises(Stop):
        fit(configure(*numbers), "finetune", tmp_path, StopAt("on_train_batch_start", 2))
    file = checkpoint.list_checkpoints(tmp_path)[0]
    content = checkpoint.load(file)
    content["callbacks"]["Timer"]["time_elapsed"]["train"] = 3600.0
    checkpoint.save(content, file)
    average = content["callbacks"]["ema"]["average"]
    fit(configure(*numbers), "finetune", tmp_path)
    end = checkpoint.load(file)
    assert end["global_step"] == 2
    assert end["callbacks"]["ema"]["ended"]
    for now, wanted in zip(model_state_dict(end).values(), average, strict=True):
        torch.testing.assert_close(now, wanted, atol=0, rtol=0)


def test_the_last_step_within_max_time_ends_with_the_average(configure: Any, tmp_path: Path) -> None:
    """Bug: where a save was due at that step, it came before Lightning's timer, and no other followed."""
    numbers = ("stages.finetune.ema_decay=0.9", "checkpoint.every_n_steps=1")
    fit(configure(*numbers, "trainer.max_time=00:00:00:01"), "finetune", tmp_path / "stage", Slow())
    last = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stage")[0])
    assert last["global_step"] == 1
    assert last["callbacks"]["ema"]["ended"]


@pytest.mark.parametrize("every", [1, 100])
def test_the_end_within_accumulated_batches_has_the_average(
    configure: Any, tmp_path: Path, every: int
) -> None:
    """Bug: a checkpoint that was saved at the last step, before the average was swapped in, was the last."""
    config = configure(
        "stages.finetune.ema_decay=0.9",
        "stages.finetune.learning_rate=1e-6",  # no validation is better than the first
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "trainer.accumulate_grad_batches=3",
        "trainer.val_check_interval=2",
        f"checkpoint.every_n_steps={every}",
    )
    fit(config, "finetune", tmp_path / "stage")
    last = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "stage")[0])
    assert last["global_step"] == 1
    assert last["callbacks"]["ema"]["ended"]


class Slow(L.Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(1)


def test_not_of_a_spread_model() -> None:
    with pytest.raises(InputError, match="ema_decay=0"):
        compose(["trainer=fsdp2", "stages.finetune.ema_decay=0.9"])
