"""The validation loss is a mean over characters."""

import math
from typing import Any

import pytest
import torch

from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.models.build import build_model
from birthplace_lm.training.components import build_datamodule, build_module
from birthplace_lm.training.lightning_module import LanguageModelModule
from birthplace_lm.training.preflight import preflight


def module_and_batches(configure: Any) -> tuple[LanguageModelModule, list[Any]]:
    config = configure("pretrain=none", "stages.finetune.batch_size=7")
    corpus = read_corpus(config.data, config.model.block_size)
    (plan,) = preflight(config, corpus)
    data = build_datamodule(plan, corpus)
    module = build_module(plan, build_model(plan.model, len(corpus.vocab)), corpus, data.train_rows)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # it needs a trainer
    losses, _ = data.val_dataloader()
    return module.eval(), list(losses)


def test_the_validation_loss_is_a_mean_over_characters(configure: Any) -> None:
    module, batches = module_and_batches(configure)
    pad, sums, counts = module.vocab.pad_id, [], []
    for number, batch in enumerate(batches):
        with torch.no_grad():
            module.validation_step(batch, number)
            sums.append(float(module.model.loss(batch["inputs"], batch["targets"], pad, reduction="sum")))
        counts.append(int((batch["targets"] != pad).sum()))
    assert len(set(counts)) > 1
    assert float(module.val_loss.compute()) == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


def test_nan_in_one_batch_is_nan_in_the_validation_loss(configure: Any) -> None:
    """Bug: the batch was left out of the mean."""
    module, batches = module_and_batches(configure)
    with torch.no_grad():
        module.validation_step(batches[0], 0)
        module.val_loss.update(torch.tensor(math.nan), torch.tensor(5))
        module.validation_step(batches[-1], len(batches) - 1)
    assert math.isnan(float(module.val_loss.compute()))
