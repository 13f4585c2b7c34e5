"""A stage that stops after any step and starts again ends as one that was left alone."""

import hashlib
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from birthplace_lm import checkpoint, pipeline
from birthplace_lm.data.corpus import read_corpus


class Stop(Exception):
    """Ends a run without a chance to tidy up, as SIGKILL would."""


def fit(
    config: DictConfig, stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int = -1
) -> int:
    """Train, from the newest checkpoint if there is one; the optimizer step it began with."""
    began = []

    class Stopper(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            began.append(trainer.global_step)
            if trainer.global_step == stop_after:
                raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "progress", lambda *args: [Stopper()])
        folder.mkdir(exist_ok=True)
        corpus = read_corpus(config.data, config.model.block_size)
        pipeline.fit_stage(stage, config, corpus, folder, None)
    return began[0]


def digest(folder: Path) -> str:
    """SHA-256 over weights, optimizer, learning rate and position in the data of the newest checkpoint."""
    state = checkpoint.load(checkpoint.saved_in(folder)[0])
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "BatchDataModule"):
        add(state.get(key, {}))
    add({k: v for k, v in state.items() if k.endswith("DataModule")})
    return sha.hexdigest()


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("attention", ["vanilla", "synthesizer"])
@pytest.mark.parametrize("extra", [(), ("trainer.accumulate_grad_batches=3",)], ids=["plain", "accumulate"])
def test_stopped_at_every_step(
    stage: str,
    attention: str,
    extra: tuple[str, ...],
    configure: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure(f"attention={attention}", "model.dropout=0.1", "checkpoint.every_n_steps=1", *extra)
    fit(config, stage, tmp_path / "whole", monkeypatch)
    steps = int(checkpoint.saved_in(tmp_path / "whole")[0].stem.split("-")[1])
    assert steps > 1
    for step in range(1, steps):
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Stop):
            fit(config, stage, folder, monkeypatch, stop_after=step)
        assert digest(folder) != digest(tmp_path / "whole")
        assert fit(config, stage, folder, monkeypatch) == step
        assert digest(folder) == digest(tmp_path / "whole"), f"after step {step}"
        assert logged(folder, stage) == list(range(steps))


def logged(folder: Path, stage: str) -> list[int]:
    """The steps of the loss curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars(f"{stage}/loss")]
