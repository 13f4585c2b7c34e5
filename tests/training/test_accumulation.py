"""The gradient of a step of several batches is the mean of theirs, also where an epoch leaves fewer."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from stage import fit


class Gradients(L.Callback):
    """Compares the gradient of every step with that of its batches, each taken by itself."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.sizes: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        parameters = [p for p in pl_module.model.parameters() if p.requires_grad]
        expected = [torch.zeros_like(p) for p in parameters]
        for batch in self.batches:
            rows, targets = batch["inputs"], batch["targets"]
            with torch.enable_grad():
                log_p = pl_module.model(rows).log_softmax(-1).gather(2, targets[..., None])[..., 0]
                counts = targets != pl_module.vocab.pad_id
                loss = -(log_p * counts).sum() / counts.sum()
            gradients = torch.autograd.grad(loss, parameters)
            expected = [e + g / len(self.batches) for e, g in zip(expected, gradients, strict=True)]
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
        self.sizes.append(len(self.batches))
        self.batches = []


@pytest.mark.parametrize(("count", "sizes"), [(1, [1] * 6), (2, [2, 1] * 2), (3, [3] * 2), (5, [3] * 2)])
def test_a_step_is_the_mean_of_its_batches(
    configure: Any, tmp_path: Path, count: int, sizes: list[int]
) -> None:
    """Bug: Lightning divides by `accumulate_grad_batches` where fewer batches are left, too."""
    gradients = Gradients()
    config = configure("pretrain=none", f"trainer.accumulate_grad_batches={count}")
    fit(config, "finetune", tmp_path / "stage", gradients)
    assert gradients.sizes == sizes
