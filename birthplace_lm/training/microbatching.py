"""The loss of a batch, and its gradient, in as little time and memory as a CPU needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from birthplace_lm.data.sequences import Batch
from birthplace_lm.models.gpt import GPT

MICRO_BATCH_CHARS = 1024  # on a CPU: what they leave for the gradient stays in its cache, and memory small


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that are read together.

    Attributes:
        rows: their indices.
        width: characters of the longest.
        shared: how many of them are alike in all rows, and none of those a target.
    """

    rows: Tensor
    width: int
    shared: int


def microbatched_loss_sum(model: GPT, batch: Batch, pad_id: int) -> Tensor:
    """Cross-entropy in nats summed over the batch, which a CPU reads in parts of rows that are alike.

    Less of them is PAD than of the whole, and what all rows of a part begin with is read once; see
    `_AccumulateOverMicroBatches` for the rest of the gain.
    """
    inputs, targets = batch["inputs"], batch["targets"]
    if inputs.device.type != "cpu" or isinstance(model, FSDPModule):
        return model.loss(inputs, targets, pad_id, reduction="sum")
    parts = _parts(inputs, targets, pad_id, pads_only=model.training and model.drop.p > 0)

    def loss_of(part: MicroBatch) -> Tensor:
        rows, width = part.rows, part.width
        return model.loss(inputs[rows, :width], targets[rows, :width], pad_id, "sum", part.shared)

    if len(parts) > 1 and torch.is_grad_enabled():
        learning = [p for p in model.parameters() if p.requires_grad]
        summed: Tensor = _AccumulateOverMicroBatches.apply(loss_of, parts, *learning)
        return summed
    return torch.stack([loss_of(part) for part in parts]).sum()


def _parts(inputs: Tensor, targets: Tensor, pad_id: int, pads_only: bool) -> list[MicroBatch]:
    """All rows: those that PADs move to the right, and the others; each by their lengths.

    Args:
        pads_only: share nothing but those PADs. Dropout treats each character of each row differently, and
            only of a PAD does nobody mind.
    """
    position = torch.arange(1, inputs.shape[1] + 1)
    lengths = ((inputs != pad_id) * position).amax(1)
    order = lengths.argsort()
    moved = inputs[order, 0] == pad_id
    parts = []
    for rows in (order[moved], order[~moved]):
        if len(rows) == 0:
            continue
        alike = (inputs[rows] == inputs[rows[:1]]).all(0) & (targets[rows] == pad_id).all(0)
        if pads_only:
            alike &= inputs[rows[0]] == pad_id
        shared = max(0, min(int(alike.long().cumprod(0).sum()), int(lengths[rows[0]]) - 1))
        characters = int(lengths[rows].sum()) - shared * len(rows)
        for some in rows.chunk(characters // MICRO_BATCH_CHARS + 1):
            parts.append(MicroBatch(some, int(lengths[some[-1]]), shared))
    return parts


class _AccumulateOverMicroBatches(torch.autograd.Function):
    """The sum of a function over parts, whose gradients are taken part by part.

    What a part needs for its gradient is freed, still in the processor's cache, before the next part begins:
    faster than one pass backwards through all of them, and with a fraction of the memory.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[MicroBatch], Tensor], parts: Sequence[MicroBatch], *parameters: Tensor
    ) -> Tensor:
        values, ctx.gradients = [], None
        for part in parts:
            with torch.enable_grad():
                value = function(part)
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            values.append(value.detach())
            if ctx.gradients is None:
                ctx.gradients = gradients
            else:
                torch._foreach_add_(ctx.gradients, gradients)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.gradients, outer[0])
