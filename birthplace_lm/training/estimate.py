"""Estimate the time and memory of a run by taking a few of its steps; nothing is written."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.utils import instantiate
from torch.nn.utils import clip_grad_norm_

from birthplace_lm.data.batch_datamodule import BatchDataModule
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.training.components import build_datamodule, probe_trainer, training_clock
from birthplace_lm.training.microbatching import microbatched_loss_sum
from birthplace_lm.training.plan import StagePlan
from birthplace_lm.training.stage import steps_done

SECONDS = 0.4  # to measure in, per stage; at least one step
MAX_STEPS = 20


@dataclass(frozen=True)
class Estimate:
    """What the steps of a run that are left cost on this machine.

    Attributes:
        seconds: of all optimizer steps; without validations and the evaluation.
        peak_bytes: resident memory of this process at its peak, with the steps that were measured.
        steps: how many were measured.
    """

    seconds: float
    peak_bytes: int
    steps: int


def estimate(plans: Sequence[StagePlan], corpus: Corpus, overwrite: bool = False) -> Estimate | None:
    """Measure every stage; None for a run on other devices than one CPU.

    Args:
        overwrite: of the run: its own stages begin again.
    """
    seconds, steps = 0.0, 0
    for plan in plans:
        trainer = probe_trainer(plan.trainer)
        if plan.processes > 1 or trainer.strategy.root_device.type != "cpu":
            return None
        with trainer.precision_plugin.forward_context(), float32_products(plan.float32_products):
            data = build_datamodule(plan, corpus)
            durations = _measure(plan, corpus, data)
        steps_left = plan.total_steps - steps_done(plan, overwrite)
        clock = training_clock(plan, data.train_rows)
        batches = -(-clock.rows // plan.loading.batch_size) / clock.steps_per_epoch  # of a step, in the mean
        seconds += steps_left * batches * sum(durations) / len(durations)
        steps += len(durations)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Estimate(seconds, peak, steps)


def _measure(plan: StagePlan, corpus: Corpus, data: BatchDataModule) -> list[float]:
    """Seconds of steps on the first batches of the stage, but for the first step, which is slower."""
    model = build_model(plan.model, len(corpus.vocab)).train()
    optimizer = instantiate(plan.optimizer)(model=model, lr=plan.learning_rate)
    durations: list[float] = []
    began = time.perf_counter()
    for index in range(min(MAX_STEPS, len(data.train_batches))):
        start = time.perf_counter()
        batch = data.train_batches[0, index]
        loss = microbatched_loss_sum(model, batch, data.pad_id) / batch["loss_denominator"]
        loss.backward()
        clip_grad_norm_(model.parameters(), plan.trainer["gradient_clip_val"] or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        durations.append(time.perf_counter() - start)
        if time.perf_counter() - began > SECONDS:
            break
    return durations[1:] or durations
