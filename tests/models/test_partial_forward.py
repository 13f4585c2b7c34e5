"""Logits of selected positions, and losses of them, against those of all positions."""

import pytest
import torch

from birthplace_lm.models.attention.synthesizer import SynthesizerAttention
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training.microbatching import loss_sum

SYMBOLS, BLOCK = 11, 16


@pytest.mark.parametrize("attention", [VanillaAttention, SynthesizerAttention])
def test_selected_logits_and_their_gradients(attention: type) -> None:
    torch.manual_seed(1)
    model = GPT(SYMBOLS, 2, 4, 16, BLOCK, dropout=0.0, attention=attention).double()
    ids = torch.randint(2, SYMBOLS, (5, BLOCK))
    select = torch.rand(5, BLOCK) < 0.3
    assert torch.allclose(model(ids, select=select), model(ids)[select], atol=1e-12)
    assert model(ids, select=torch.zeros_like(select)).shape == (0, SYMBOLS)
    targets = torch.randint(2, SYMBOLS, (5, BLOCK)).masked_fill(~select, 0)
    plain = torch.nn.functional.cross_entropy(
        model(ids).flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum"
    )
    loss = loss_sum(model, ids, targets, 0)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)  # the loss is a float32
    expected = torch.autograd.grad(plain, list(model.parameters()), materialize_grads=True)
    for gradient, plain_gradient in zip(
        torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True), expected, strict=True
    ):
        assert torch.allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-5)
