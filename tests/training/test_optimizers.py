"""Optimizers against torch's AdamW and a Muon written out for one matrix at a time."""

import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from birthplace_lm.models.attention.synthesizer import SynthesizerAttention
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.gpt import GPT
from birthplace_lm.training.optimizers import adamw, muon, orthogonalize

LR, BETAS, DECAY, MATRIX_LR, MOMENTUM = 0.01, (0.9, 0.95), 0.1, 7.5, 0.95
Make = Callable[..., Optimizer]
MUON: Make = partial(
    muon,
    lr=LR,
    betas=BETAS,
    weight_decay=DECAY,
    matrix_lr_multiplier=MATRIX_LR,
    momentum=MOMENTUM,
    precision="32-true",
)
ADAMW: Make = partial(adamw, lr=LR, betas=BETAS, weight_decay=DECAY, decay_all_but_bias=False)
ADAMW_2021: Make = partial(adamw, lr=LR, betas=BETAS, weight_decay=DECAY, decay_all_but_bias=True)
every = pytest.mark.parametrize("make", [ADAMW, ADAMW_2021, MUON], ids=["adamw", "adamw_2021", "muon"])


def small(attention: type = SynthesizerAttention) -> GPT:
    torch.manual_seed(0)
    return GPT(11, 2, 2, 8, 16, dropout=0.0, attention=attention)


def set_gradients(model: nn.Module, step: int) -> None:
    """The same for every optimizer that is compared."""
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def names(model: nn.Module, parameters: list[Tensor]) -> set[str]:
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {name_of[id(p)] for p in parameters}


@every
@pytest.mark.parametrize("attention", [VanillaAttention, SynthesizerAttention])
def test_every_parameter_is_in_exactly_one_group(make: Make, attention: type) -> None:
    model = small(attention)
    grouped = [id(p) for group in make(model=model).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


MATRICES = {"w1.weight", "w2", "value.weight", "proj.weight"}
BLOCK_MATRICES = {
    f"blocks.{i}.{name}"
    for i in range(2)
    for name in (*(f"attn.{matrix}" for matrix in MATRICES), "mlp.0.weight", "mlp.2.weight")
}
TABLES = {"tok_emb.weight", "pos_emb", "head.weight"}
BY_NAME = {
    "ln_f.weight",
    *(f"blocks.{i}.{n}" for i in range(2) for n in ("ln1.weight", "ln2.weight", "attn.b2")),
}


@pytest.mark.parametrize(
    ("make", "decaying"),
    [
        (ADAMW, BLOCK_MATRICES | TABLES),
        (ADAMW_2021, BLOCK_MATRICES | TABLES | BY_NAME),
        (MUON, BLOCK_MATRICES),
    ],
    ids=["adamw", "adamw_2021", "muon"],
)
def test_what_decays(make: Make, decaying: set[str]) -> None:
    model = small()
    decays, rest = make(model=model).param_groups
    assert (decays["weight_decay"], rest["weight_decay"]) == (DECAY, 0.0)
    assert names(model, decays["params"]) == decaying
    assert decays["betas"] == rest["betas"] == BETAS


def test_adamw_step_is_the_formula() -> None:
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = ADAMW(model=model)
    set_gradients(model, 0)
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None
        decayed = before[name] * (1 - LR * DECAY * (name in BLOCK_MATRICES | TABLES))
        expected = decayed - LR * p.grad / (p.grad.abs() + 1e-8)  # bias correction makes step one a sign
        torch.testing.assert_close(p.detach(), expected, atol=1e-6, rtol=0)


def test_what_is_no_block_matrix_moves_as_under_adamw() -> None:
    model, other = small(), small()
    rest = {name: p for name, p in other.named_parameters() if name not in BLOCK_MATRICES}
    train(model, MUON(model=model), range(5))
    train(other, AdamW(rest.values(), lr=LR, betas=BETAS, weight_decay=0.0), range(5))
    for name, p in rest.items():
        torch.testing.assert_close(model.get_parameter(name), p, atol=1e-7, rtol=1e-6)
        assert not torch.equal(p, small().get_parameter(name))


def test_block_matrices_move_as_under_muon() -> None:
    """Jordan 2024, one matrix at a time in float64."""
    model = small()
    plain = {name: p.detach().double() for name, p in model.named_parameters() if name in BLOCK_MATRICES}
    buffers = {name: torch.zeros_like(p) for name, p in plain.items()}
    optimizer = MUON(model=model)
    for step in range(4):
        set_gradients(model, step)
        for name, weight in plain.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            buffers[name] = MOMENTUM * buffers[name] + (1 - MOMENTUM) * gradient
            update = (1 - MOMENTUM) * gradient + MOMENTUM * buffers[name]
            rows, columns = update.shape
            x = update.T if rows > columns else update
            x = x / x.square().sum().sqrt()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.T if rows > columns else x
            rate = LR * MATRIX_LR
            plain[name] = weight * (1 - rate * DECAY) - rate * max(1, rows / columns) ** 0.5 * x
        optimizer.step()
    for name, weight in plain.items():
        torch.testing.assert_close(model.get_parameter(name).double(), weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("shape", [(64, 64), (32, 127), (200, 48), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_orthogonalize(shape: tuple[int, int], scale: float) -> None:
    """Singular values go to about 1; the singular vectors stay."""
    torch.manual_seed(0)
    rank = min(shape)
    u = torch.linalg.qr(torch.randn(3, shape[0], rank)).Q
    v = torch.linalg.qr(torch.randn(3, shape[1], rank)).Q
    values = torch.linspace(0.2, 1, rank)
    result = orthogonalize(scale * (u * values) @ v.mT)
    assert result.shape == (3, *shape)
    inner = u.mT @ result @ v  # diagonal: the new singular values
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-4, rtol=0)
    torch.testing.assert_close(u @ inner @ v.mT, result, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (32, 64), (32, 65), (300, 40)])
def test_products_in_bfloat16(shape: tuple[int, int]) -> None:
    """As near to the exact iterations as the two or three digits of bfloat16 allow."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    exact, rough = orthogonalize(matrices.double()), orthogonalize(matrices, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.02
    torch.testing.assert_close(orthogonalize(matrices).double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_wide_matrices_that_lack_directions(rank: int) -> None:
    """The square of a small singular value drowns in rounding; nothing may grow out of it."""
    torch.manual_seed(0)
    matrices = torch.randn(3, 40, rank) @ torch.randn(3, rank, 300)
    exact = orthogonalize(matrices.double())
    torch.testing.assert_close(orthogonalize(matrices).double(), exact, atol=1e-3, rtol=0)


def test_products_are_in_bfloat16_with_mixed_precision_alone() -> None:
    weights = []
    for precision in ("32-true", "bf16-mixed"):
        model = small()
        optimizer = MUON(model=model, precision=precision)
        set_gradients(model, 0)
        optimizer.step()
        weights.append(model.get_parameter("blocks.0.mlp.0.weight").detach())
    assert 1e-4 < (weights[0] - weights[1]).abs().max() / (LR * MATRIX_LR) < 0.1


def test_orthogonalize_takes_random_matrices_and_zeros() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(4, 64, 256)))
    assert 0.6 < values.min() < values.max() < 1.3
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()


@every
def test_a_saved_state_goes_on_identically(make: Make) -> None:
    """Loading the state of Muon raised KeyError('step'), so no run of it could be resumed."""
    whole, first, second = small(), small(), small()
    train(whole, make(model=whole), range(6))
    optimizer = make(model=first)
    train(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save((first.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second.load_state_dict(weights)
    resumed = make(model=second)
    resumed.load_state_dict(state)
    train(second, resumed, range(3, 6))
    for name, p in whole.named_parameters():
        assert torch.equal(p, second.get_parameter(name)), name


@every
def test_a_schedule_scales_every_group_alike(make: Make) -> None:
    model = small()
    optimizer = make(model=model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks == ([LR * MATRIX_LR, LR] if make is MUON else [LR, LR])
    factors = [0.5, 1.0, 0.25]
    scheduler = LambdaLR(optimizer, lambda step: factors[step])
    for factor in factors:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor * p for p in peaks])
        train(model, optimizer, range(1))
        if factor != factors[-1]:
            scheduler.step()


@every
def test_a_rate_of_zero_changes_nothing(make: Make) -> None:
    model = small()
    optimizer = make(model=model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, range(2))
    assert all(torch.equal(p, small().get_parameter(name)) for name, p in model.named_parameters())


@every
def test_parameters_without_gradient_stay(make: Make) -> None:
    model = small()
    optimizer = make(model=model)
    set_gradients(model, 0)
    still = {"blocks.0.attn.w1.weight", "tok_emb.weight", "blocks.1.mlp.2.weight"}
    for name in still:
        model.get_parameter(name).grad = None
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, small().get_parameter(name))}
    assert moved == set(dict(model.named_parameters())) - still


@every
def test_closure_sees_gradients(make: Make) -> None:
    model, ids = small(), torch.randint(11, (2, 8))
    optimizer = make(model=model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(ids, ids, pad_id=0)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]  # type: ignore
    assert losses[-1] < 0.7 * losses[0]


@every
def test_the_scaled_loss_of_float16(make: Make) -> None:
    """Fused optimizers undo the scale within `step`: clipping saw 65,536 times the gradient, and Muon never
    heard that a gradient had overflowed. `MixedPrecision` is what trainer.precision=16-mixed uses."""
    model, plain = small(), small()
    optimizer = make(model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    norms: list[float] = []

    class Module:
        automatic_optimization = True

    ps = list(model.parameters())

    def note_norm(*_: object) -> None:
        norms.append(float(nn.utils.get_total_norm([p.grad for p in ps if p.grad is not None])))

    precision._after_closure = note_norm  # type: ignore

    def closure(worst: float = 0.0) -> Tensor:
        set_gradients(model, 0)
        for p in ps:
            assert p.grad is not None
            p.grad.mul_(1024.0).add_(worst)
        return scaler.scale(torch.tensor(1.0))

    precision.optimizer_step(optimizer, Module(), closure)  # type: ignore[arg-type]
    train(plain, make(model=plain), range(1))
    expected = nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    assert norms == [pytest.approx(float(expected), rel=1e-4)]
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, atol=1e-6, rtol=0)
    precision.optimizer_step(optimizer, Module(), partial(closure, float("inf")))  # type: ignore[arg-type]
    for name, p in plain.named_parameters():  # skipped
        torch.testing.assert_close(model.get_parameter(name), p, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrong", [{"weight_decay": -1.0}, {"matrix_lr_multiplier": 0.0}, {"momentum": 1.0}])
def test_muon_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MUON(model=small(), **wrong)
