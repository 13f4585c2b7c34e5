"""The fast path of training against the plain one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.sequences import Batch
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training import microbatching as module
from birthplace_lm.training.components import build_datamodule
from birthplace_lm.training.microbatching import microbatched_loss_sum
from birthplace_lm.training.preflight import preflight

PAD = 0


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MICRO_BATCH_CHARS", 150)


@pytest.fixture(scope="module")
def config(people: Path) -> DictConfig:
    return compose(["model=tiny", f"data.root={people}", "stages.pretrain.dataset.question_fraction=1"])


@pytest.fixture(scope="module")
def corpus(config: DictConfig) -> Corpus:
    return read_corpus(config.data, config.model.block_size)


def batches(config: DictConfig, corpus: Corpus, stage: str) -> list[Batch]:
    plan = next(plan for plan in preflight(config, corpus) if plan.name == stage)
    return list(build_datamodule(plan, corpus).train_dataloader())


def gradients(model: GPT, loss: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_in_parts_is_the_batch(
    config: DictConfig, corpus: Corpus, stage: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient equal those of one forward pass over all rows, PAD included."""
    torch.manual_seed(0)
    model = build_model(config.model, len(corpus.vocab)).double()
    model.tok_emb.weight.requires_grad_(not frozen)
    parts: list[module.MicroBatch] = []
    split = module._split

    def recording(*args: Any, **kwargs: Any) -> list[module.MicroBatch]:
        parts[:] = split(*args, **kwargs)
        return parts

    monkeypatch.setattr(module, "_split", recording)
    for batch in batches(config, corpus, stage):
        plain = model.loss(batch["inputs"], batch["targets"], PAD, reduction="sum")
        expected = gradients(model, 3 * plain)
        loss = microbatched_loss_sum(model, batch, PAD)
        assert len(parts) > 1
        assert any(part.prefix_length for part in parts)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        torch.testing.assert_close(gradients(model, 3 * loss), expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            assert microbatched_loss_sum(model, batch, PAD).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize(
    "rows", [["_____"], ["_____", "__abc"], ["abcde", "abcde"], ["a", "b"], ["__ab", "__ab"]]
)
def test_rows_of_any_kind(rows: list[str]) -> None:
    """Only PADs, equal rows, a single character: a prefix holds no target and never all of a row."""
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny"]).model, 8).double()
    width = max(map(len, rows)) + 1
    ids = torch.tensor([["_abcde".index(c) for c in row.ljust(width, "_")] for row in rows])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    batch = Batch(
        inputs=inputs,
        targets=targets,
        batch_id=(0, 0),
        loss_denominator=float((targets != PAD).sum()),
        characters=int((inputs != PAD).sum()),
    )
    plain = model.loss(inputs, targets, PAD, reduction="sum")
    assert microbatched_loss_sum(model, batch, PAD).item() == pytest.approx(plain.item(), rel=1e-6)


def test_dropout_shares_nothing_but_pads(config: DictConfig, corpus: Corpus) -> None:
    for stage, shared in (("pretrain", {0, 10}), ("finetune", {0})):
        for batch in batches(config, corpus, stage):
            parts = module._split(batch["inputs"], batch["targets"], PAD, pads_only=True)
            assert {part.prefix_length for part in parts} <= shared


def test_parameters_that_are_added_have_gradients_of_their_own() -> None:
    """autograd returns one tensor for both, to which every further micro-batch was once added twice."""
    weight, change = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    bias = torch.nn.Parameter(torch.ones(3))  # its gradient is an expanded tensor, which cannot be written
    inputs = [torch.ones(1, 2), 2 * torch.ones(1, 2)]

    def function(part: Tensor) -> Tensor:
        return (part @ (weight + change)).sum() + bias.sum()

    total: Tensor = module._AccumulateOverMicroBatches.apply(function, inputs, weight, change, bias)
    gradients = torch.autograd.grad(total, [weight, change, bias])
    assert [gradient.tolist() for gradient in gradients] == [[[3, 3], [3, 3]], [[3, 3], [3, 3]], [2, 2, 2]]
