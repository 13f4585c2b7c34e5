"""Dropout and scaled dot-product attention against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from birthplace_lm.models.dropout import Dropout, dropout
from birthplace_lm.models.sdpa import ScaledDotProductAttention


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_is_torchs_in_distribution(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((1001, 999), 3.0, requires_grad=True)
    y = dropout(x, p)
    keep = y != 0
    error = 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    assert keep.double().mean().item() == pytest.approx(1 - p, abs=error)
    assert torch.allclose(y[keep], torch.tensor(3.0 / (1 - p)))
    for lag in range(1, 5):  # four numbers come from one draw
        both = (keep.flatten()[lag:] & keep.flatten()[:-lag]).double().mean().item()
        assert both == pytest.approx((1 - p) ** 2, abs=2 * error + 1e-9)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, keep)
    assert torch.allclose(gradient[keep], torch.tensor(1 / (1 - p)))


def test_dropout_is_for_training_and_follows_the_seed() -> None:
    layer, x = Dropout(0.5), torch.rand(7, 13)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_with_dropout_is_the_other_on_average(masked: bool, scale: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8).double().unbind()
    mask = torch.rand(2, 1, 9, 9) < 0.7 if masked else None
    if mask is not None:
        mask |= torch.eye(9, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale)
    assert torch.allclose(ScaledDotProductAttention(0.0, scale)(q, k, v, mask), expected)
    assert torch.allclose(
        ScaledDotProductAttention(1e-9, scale)(q, k, v, mask), expected
    )  # the plain way, nothing dropped
    attend = ScaledDotProductAttention(0.2, scale)
    many = torch.stack([attend(q, k, v, mask) for _ in range(3000)])
    spread = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - expected).abs() <= 6 * spread + 1e-9).all()
