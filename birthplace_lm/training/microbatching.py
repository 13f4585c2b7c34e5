"""Loss and gradient of a batch in micro-batches of similar rows: less time and memory on a CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from birthplace_lm.data.sequences import Batch
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.kv_cache import KVCache
from birthplace_lm.models.partial_forward import forward_with_shared_prefix

MICRO_BATCH_CHARS = 1024  # on a CPU: activations stay in the processor's cache, and memory stays small


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that are computed together.

    Attributes:
        rows: their indices.
        width: length of the longest row.
        prefix_length: length of the prefix that is equal in all rows; none of its characters is a target.
    """

    rows: Tensor
    width: int
    prefix_length: int


def microbatched_loss_sum(model: GPT, batch: Batch, pad_id: int) -> Tensor:
    """Cross-entropy in nats summed over the batch; on a CPU, computed in micro-batches of similar rows.

    A micro-batch has less padding than the batch, and the common prefix of its rows is computed once. See
    `_AccumulateOverMicroBatches` for the rest of the gain.
    """
    inputs, targets = batch["inputs"], batch["targets"]
    if inputs.device.type != "cpu" or isinstance(model, FSDPModule):  # which gathers weights in every pass
        return loss_sum(model, inputs, targets, pad_id)
    micro_batches = _split(inputs, targets, pad_id, pads_only=model.training and model.drop.p > 0)

    def loss_of(part: MicroBatch) -> Tensor:
        rows, width = part.rows, part.width
        return loss_sum(model, inputs[rows, :width], targets[rows, :width], pad_id, part.prefix_length)

    if len(micro_batches) > 1 and torch.is_grad_enabled():
        parameters = [p for p in model.parameters() if p.requires_grad]
        total: Tensor = _AccumulateOverMicroBatches.apply(loss_of, micro_batches, *parameters)
        return total
    return torch.stack([loss_of(part) for part in micro_batches]).sum()


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, pad_id: int, prefix_length: int = 0) -> Tensor:
    """`model.loss(inputs, targets, pad_id, "sum")`, with logits at the targets only.

    Args:
        prefix_length: length of the prefix that is equal in all rows; none of its characters is a target.
    """
    select = targets != pad_id
    if prefix_length:
        cache = KVCache(model.n_layer, inputs.shape[1])
        logits = forward_with_shared_prefix(model, inputs, prefix_length, select, cache)
    else:
        logits = model(inputs, select=select)
    return F.cross_entropy(logits.float(), targets[select], reduction="sum")


def _split(inputs: Tensor, targets: Tensor, pad_id: int, pads_only: bool) -> list[MicroBatch]:
    """Group rows that start with PAD and rows that do not, then cut each group in order of length.

    Args:
        pads_only: share no prefix but PADs. With dropout, the other characters need independent masks.
    """
    position = torch.arange(1, inputs.shape[1] + 1)
    lengths = ((inputs != pad_id) * position).amax(1)
    order = lengths.argsort()
    shifted = inputs[order, 0] == pad_id
    micro_batches = []
    for rows in (order[shifted], order[~shifted]):
        if len(rows) == 0:
            continue
        equal = (inputs[rows] == inputs[rows[:1]]).all(0) & (targets[rows] == pad_id).all(0)
        if pads_only:
            equal &= inputs[rows[0]] == pad_id
        prefix_length = max(0, min(int(equal.long().cumprod(0).sum()), int(lengths[rows[0]]) - 1))
        characters = int(lengths[rows].sum()) - prefix_length * len(rows)
        for chunk in rows.chunk(characters // MICRO_BATCH_CHARS + 1):
            micro_batches.append(MicroBatch(chunk, int(lengths[chunk[-1]]), prefix_length))
    return micro_batches


class _AccumulateOverMicroBatches(torch.autograd.Function):
    """The sum of a function over micro-batches; each one's gradient is computed in the forward pass.

    The activations of a micro-batch are freed, still in the processor's cache, before the next one begins.
    This is faster than one backward pass over all of them and needs a fraction of the memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[MicroBatch], Tensor],
        micro_batches: Sequence[MicroBatch],
        *parameters: Tensor,
    ) -> Tensor:
        values, ctx.gradients = [], None
        for part in micro_batches:
            with torch.enable_grad():
                value = function(part)
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            values.append(value.detach())
            if ctx.gradients is None:
                # Copies: autograd returns one tensor for two parameters that are added to each other.
                ctx.gradients = [gradient.clone() for gradient in gradients]
            else:
                for total, gradient in zip(ctx.gradients, gradients, strict=True):
                    total.add_(gradient)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, *(gradient * grad_outputs[0] for gradient in ctx.gradients)
