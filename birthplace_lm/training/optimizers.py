"""Optimizer factories: `factory(model=..., lr=...)` returns one optimizer for all parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from birthplace_lm.training.distributed.dtensor import full_tensor, shard_like


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, decay_all_but_bias: bool
) -> Optimizer:
    """AdamW without weight decay for vectors: LayerNorm gains and biases.

    A bias that an attention stores as a row per head is a matrix, and decays: `b2` of `synthesizer_per_head`,
    `row_bias` and `column_bias` of `synthesizer_factorized_dense`.

    Args:
        decay_all_but_bias: instead, decay every parameter without "bias" in its name, LayerNorm gains
            included. The 2021 protocol.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    named = list(model.named_parameters())
    decays = {name: "bias" not in name if decay_all_but_bias else p.dim() >= 2 for name, p in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    return _unscaled_before_clipping(AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True))


def muon(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    matrix_lr_multiplier: float,
    momentum: float,
    precision: str,
) -> Optimizer:
    """Muon for the matrices of the blocks, AdamW without decay for everything else, in one optimizer.

    Every parameter of a block with two dimensions counts as a matrix, also what is none for its layer: the
    kernels of Canon layers, the latents (`basis`) of `perceiver`, `score` of `additive` and `b2` of
    `synthesizer_per_head`.

    Args:
        weight_decay: of the matrices.
        matrix_lr_multiplier: the matrices' learning rate as a multiple of `lr`.
        precision: of the trainer; with "bf16-mixed" matrices are orthogonalised in bfloat16.

    Raises:
        ValueError: a number is out of range.
    """
    if weight_decay < 0 or matrix_lr_multiplier <= 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"weight_decay={weight_decay} must be 0 or more, matrix_lr_multiplier={matrix_lr_multiplier}"
            f" more than 0, momentum={momentum} from 0 to below 1"
        )
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks.")]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {
            "params": matrices,
            "lr": lr * matrix_lr_multiplier,
            "weight_decay": weight_decay,
            "momentum": momentum,
        },
        {"params": rest, "lr": lr, "weight_decay": 0.0, "momentum": None},
    ]
    matmul_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    return _unscaled_before_clipping(MuonAdamW(groups, (betas[0], betas[1]), matmul_dtype))


class MuonAdamW(AdamW):
    """AdamW that trains the parameter groups with a `momentum` by Muon.

    Muon steps along the orthogonalised momentum: every direction of a matrix moves equally fast. Matrices of
    one shape are orthogonalised together. `torch.optim.Muon` takes them one by one, and always in bfloat16,
    which CPUs without bfloat16 units emulate.

    Args:
        matmul_dtype: see `orthogonalize`.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], matmul_dtype: torch.dtype | None
    ) -> None:
        super().__init__(groups, betas=betas, fused=True)
        self.matmul_dtype = matmul_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; `closure` computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["momentum"] is not None:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if group["momentum"] is None]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        for matrices in _by_shape(p for p in group["params"] if p.grad is not None):
            buffers = [self._momentum(p) for p in matrices]
            gradients = [p.grad for p in matrices if p.grad is not None]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            nesterov = [g.lerp(b, group["momentum"]) for g, b in zip(gradients, buffers, strict=True)]
            rows, columns = matrices[0].shape
            updates = orthogonalize(torch.stack([full_tensor(d) for d in nesterov]), self.matmul_dtype)
            updates *= max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            steps = [shard_like(u, p) for u, p in zip(updates.unbind(), matrices, strict=True)]
            torch._foreach_add_(matrices, steps, alpha=-group["lr"])

    def _momentum(self, p: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW expects it in every state that it loads
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def orthogonalize(matrices: Tensor, matmul_dtype: torch.dtype | None = None, steps: int = 5) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices of (N, rows, columns): singular values near 1.

    Newton-Schulz iterations x <- p(x x^T) x with the coefficients of the source, which trade exactness for
    speed: singular values end between about 0.7 and 1.2.

    Args:
        matmul_dtype: type of the factors of each product; None for the type of `matrices`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(matmul_dtype)
    if x.shape[2] > 2 * x.shape[1] and x.dtype.itemsize >= 4:
        x = _composed(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            x = torch.baddbmm(x, _higher_terms(x @ x.mT), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def _higher_terms(square: Tensor) -> Tensor:
    """The higher terms of the polynomial p(x x^T) = 3.4445 - 4.7750 x x^T + 2.0315 (x x^T)^2."""
    return torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)


def _composed(square: Tensor, steps: int) -> Tensor:
    """The product of the polynomials of all steps, (N, rows, rows).

    All of them commute with x x^T, which a step turns into p x x^T p, so x itself is needed only at the end.
    Saves half of the work if x is far wider than high, but needs more digits than bfloat16 has.
    """
    first = 3.4445 * torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
    product = p = first + _higher_terms(square)
    for _ in range(steps - 1):
        square = p @ square @ p
        p = first + _higher_terms(square)
        product = p @ product
    return product


def _unscaled_before_clipping(optimizer: Optimizer) -> Optimizer:
    """Let the scaler of float16 unscale gradients before they are clipped; fused optimizers do so in `step`.

    No public attribute says so: torch's GradScaler and Lightning both read this one.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in parameters:
        shapes.setdefault(p.shape, []).append(p)
    return list(shapes.values())
