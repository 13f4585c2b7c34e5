"""FSDP2 in one process: what shards and gathered weights change."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock, PropertyMock, patch

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from stage import forge, forked
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from birthplace_lm.config.compose import compose
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import CheckpointError, NonFiniteError
from birthplace_lm.models.build import build_model
from birthplace_lm.training.callbacks.nonfinite import NonFiniteGuard
from birthplace_lm.training.distributed.fsdp import FSDP2Strategy, resolve_strategy, shard
from birthplace_lm.training.distributed.launcher import _free_port

VOCAB = CharVocab.from_text("abc")


def test_a_checkpoint_is_verified_before_it_is_used(tmp_path: Path) -> None:
    """Bug: Lightning read it for FSDP2, without our checks, and as a pickle if the environment said so."""
    strategy = resolve_strategy("fsdp2", processes=2)
    assert isinstance(strategy, FSDP2Strategy)
    forge(tmp_path / "step-00000001.ckpt", {"state_dict": {}, "birthplace_lm": {"format": 1}})
    with (
        patch.object(FSDP2Strategy, "is_global_zero", PropertyMock(return_value=True)),
        patch.object(ModelParallelStrategy, "load_checkpoint") as load,
    ):
        with pytest.raises(CheckpointError, match="has format 1 of another version"):
            strategy.load_checkpoint(tmp_path / "step-00000001.ckpt")
        load.assert_not_called()
    with (
        patch.object(FSDP2Strategy, "is_global_zero", PropertyMock(return_value=False)),
        patch.object(ModelParallelStrategy, "load_checkpoint") as load,
    ):
        strategy.load_checkpoint(tmp_path / "step-00000001.ckpt")
    load.assert_called_once_with(tmp_path / "step-00000001.ckpt", weights_only=True)


def test_the_report_names_sharded_gradients_that_are_not_finite(tmp_path: Path) -> None:
    """Bug: it asked the gathered weights, which have no gradients."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}

    def work() -> None:
        os.environ.update(place)
        distributed.init_process_group("gloo")
        model = build_model(compose(["model=tiny"]).model, len(VOCAB))
        shard(model, init_device_mesh("cpu", (1,)))
        ids = torch.tensor([VOCAB.encode("abcabc")])
        (model.loss(ids[:, :-1], ids[:, 1:], VOCAB.pad_id) * torch.inf).backward()
        guard = NonFiniteGuard(0, tmp_path)
        batch: Any = {"batch_id": (0, 0), "inputs": ids[:, :-1], "targets": ids[:, 1:]}
        trainer, module = Mock(global_step=0, global_rank=0), Mock(stage="finetune", model=model, vocab=VOCAB)
        module.parameters = model.parameters
        guard.on_train_batch_start(trainer, module, batch, 0)
        with pytest.raises(NonFiniteError):
            guard.on_before_optimizer_step(trainer, module, Mock(param_groups=[{"lr": 0.1}]))

    assert forked(work) == 0
    report = json.loads((tmp_path / "nonfinite-step-00000001-rank-0.json").read_text())
    assert "head.weight" in report["gradients_not_finite"]
    assert report["weights_not_finite"] == []
    assert len(report["examples"]) == 1
