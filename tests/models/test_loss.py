"""The fast path of training against the plain one."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from birthplace_lm.build import build_model
from birthplace_lm.config import load
from birthplace_lm.data.corpus import Corpus, read_corpus
from birthplace_lm.models.loss import CHARACTERS_AT_ONCE, summed_loss
from birthplace_lm.rehearse import data_module


@pytest.fixture(scope="module")
def config(people: Path) -> DictConfig:
    size = f"stages.pretrain.batch_size={3 * CHARACTERS_AT_ONCE - 5}"
    return load(["model=tiny", f"data.root={people}", size, "stages.pretrain.data.questions=1"])


@pytest.fixture(scope="module")
def corpus(config: DictConfig) -> Corpus:
    corpus = read_corpus(config.data, config.model.block_size)
    return corpus


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_batch_in_parts_is_the_batch(config: DictConfig, corpus: Corpus, stage: str) -> None:
    """Loss and every gradient; the plain way reads all rows at once, PAD and all."""
    torch.manual_seed(0)
    model = build_model(config, len(corpus.vocab)).double()
    batches = data_module(config, config.stages[stage], corpus).train_dataloader()
    for batch in batches:
        plain = model.loss(batch["inputs"], batch["targets"], corpus.vocab.pad_id, reduction="sum")
        expected = torch.autograd.grad(plain, list(model.parameters()), materialize_grads=True)
        loss = summed_loss(model, batch, corpus.vocab.pad_id)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        model.zero_grad()
        (3 * loss).backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, 3 * gradient, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            assert summed_loss(model, batch, corpus.vocab.pad_id).item() == pytest.approx(
                plain.item(), rel=1e-6
            )
