"""Non-finite guard: no optimizer step with a gradient that holds NaN or infinity."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.optim import Optimizer

from birthplace_lm.data.sequences import Batch
from birthplace_lm.errors import NonFiniteError
from birthplace_lm.runs.atomic_files import atomic_write_text
from birthplace_lm.training.distributed.dtensor import full_tensor
from birthplace_lm.training.distributed.fsdp import unsharded

log = logging.getLogger(__name__)

MAX_SCALER_SKIPS = 50  # steps in a row that the scaler of float16 may skip; each halves the scale


class NonFiniteGuard(L.Callback):
    """Checks the gradient before every optimizer step; writes a report and skips the step or stops the run.

    Logs `grad_norm`, the norm before clipping, for the callbacks.

    Args:
        max_skips: steps of this stage that may be skipped.
        folder: where the reports go.
    """

    state_key = "nonfinite"

    def __init__(self, max_skips: int, folder: Path) -> None:
        self.max_skips = max_skips
        self.folder = folder
        self.skipped = 0
        self._scaler_skips = 0
        self._batches: list[Batch] = []  # of this optimizer step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batches.append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Check the gradient.

        Raises:
            NonFiniteError: no more steps may be skipped; nothing has been changed.
        """
        batches, self._batches = self._batches, []
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        pl_module.log(f"{pl_module.stage}/grad_norm", norm, logger=False)
        if torch.isfinite(norm):
            self._scaler_skips = 0
            return
        self._scaler_skips += 1
        if trainer.precision == "16-mixed" and self._scaler_skips <= MAX_SCALER_SKIPS:
            return  # the scaler skips the step itself and tries again with a smaller scale
        step, rate = trainer.global_step + 1, optimizer.param_groups[-1]["lr"]
        file = self.folder / f"nonfinite-step-{step:08d}-rank-{trainer.global_rank}.json"
        report = {
            "stage": pl_module.stage,
            "step": step,
            "learning_rate": rate,
            "gradient_norm": _json_number(float(norm)),
            **_examine(pl_module, batches),
        }
        atomic_write_text(file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        message = (
            f"{pl_module.stage}: the gradient is not finite in step {step}"
            f" (learning rate {rate:.3g}, norm {float(norm)})"
        )
        if self.skipped == self.max_skips:
            raise NonFiniteError(f"{message}; the step was not taken, its examples are in {file}")
        self.skipped += 1
        log.warning("%s; skipped, %d more may be; %s", message, self.max_skips - self.skipped, file)
        for parameter in pl_module.parameters():
            parameter.grad = None  # optimizers ignore a parameter without a gradient

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


@torch.no_grad()
def _examine(pl_module: Any, batches: list[Batch]) -> dict[str, Any]:
    """Every example with its own loss in nats, and the names of the tensors that are not finite."""
    model, vocab, examples = pl_module.model, pl_module.vocab, []
    tensors = [(name, p, p.grad) for name, p in model.named_parameters()]  # unsharded ones have no gradient
    weights = [name for name, p, _ in tensors if not _is_finite(p)]
    gradients = [name for name, _, g in tensors if g is not None and not _is_finite(g)]
    with unsharded(model):
        for batch in batches:
            epoch, index = batch["batch_id"]
            for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
                loss = float(model.loss(inputs[None], targets[None], vocab.pad_id, reduction="sum"))
                text = vocab.decode(inputs.tolist()).rstrip(vocab.pad)
                examples.append({"epoch": epoch, "batch": index, "loss": _json_number(loss), "text": text})
    return {"weights_not_finite": weights, "gradients_not_finite": gradients, "examples": examples}


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(full_tensor(tensor)).all())


def _json_number(number: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else str(number)
