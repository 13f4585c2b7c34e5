"""Which library multiplies float32 matrices on a CPU: MKL, torch's choice, or oneDNN.

On some AMD processors (Zen 5) oneDNN is up to twice as fast as MKL. torch sends float32 products to oneDNN
only if a setting allows oneDNN to compute them in bfloat16. On a processor without the instructions for it
(AMX), oneDNN still computes in float32; `onednn_is_exact` checks this. torch's fused attention multiplies
many small blocks, which is twelve times slower with oneDNN, so `fused_attention` always uses MKL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# oneDNN compiles code for every shape, and shapes change with every batch. It would keep 1,024 pieces of it,
# half a gigabyte; the layers and micro-batches of a step share a few. Read at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

MKL, ONEDNN = "mkl", "onednn"
SIZE, TOLERANCE = 256, 1e-5  # of a product that shows its precision; one in bfloat16 has errors of 1e-3


def onednn_is_exact() -> bool:
    """Whether this machine can multiply with oneDNN, and then in float32."""
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or not hasattr(mkldnn.matmul, "fp32_precision"):
        return False
    generator = torch.Generator().manual_seed(0)  # the run's random numbers stay as they are
    a, b = (torch.rand(SIZE, SIZE, generator=generator) for _ in range(2))
    expected = a.double() @ b.double()
    with _setting("bf16"):
        error = (F.linear(a, b.T.contiguous()) - expected).abs().max() / expected.abs().max()
    return float(error) < TOLERANCE


@contextmanager
def float32_products(library: str) -> Iterator[None]:
    """Multiply float32 matrices with this library, or with MKL where oneDNN would not be exact."""
    with _setting(_precision(library)):
        yield


def multiply_with(library: str) -> None:
    """Change the library within a block of `float32_products`, which restores the one before it."""
    mkldnn: Any = torch.backends.mkldnn
    if hasattr(mkldnn.matmul, "fp32_precision"):
        mkldnn.matmul.fp32_precision = _precision(library)


def _precision(library: str) -> str:
    return "bf16" if library == ONEDNN and onednn_is_exact() else "none"


def current_library() -> str:
    """The library that multiplies float32 matrices now."""
    mkldnn: Any = torch.backends.mkldnn
    return ONEDNN if getattr(mkldnn.matmul, "fp32_precision", None) == "bf16" else MKL


@contextmanager
def _setting(precision: str) -> Iterator[None]:
    """torch's setting that sends float32 products to oneDNN ("bf16") or not ("none")."""
    mkldnn: Any = torch.backends.mkldnn
    matmul = mkldnn.matmul
    before = getattr(matmul, "fp32_precision", None)
    if before is None:  # a torch without the setting
        yield
        return
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """torch's fused attention, without dropout, whose small products are always MKL's."""
    if current_library() == MKL:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)
    if torch.is_grad_enabled():
        result: Tensor = _FusedAttention.apply(q, k, v, mask, causal, scale)
        return result
    with _setting("none"):
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)


class _FusedAttention(torch.autograd.Function):
    """Fused attention whose forward and backward pass are both computed with MKL."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor:
        with torch.enable_grad(), _setting("none"):
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            if mask is not None:
                mask = mask.detach().requires_grad_(ctx.needs_input_grad[3])
            output = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)
        ctx.inputs, ctx.output = (q, k, v, mask), output
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        wanted = [x for x in ctx.inputs if x is not None and x.requires_grad]
        with _setting("none"):
            gradients = torch.autograd.grad(ctx.output, wanted, grad_outputs[0])
        of_mask = gradients[3] if len(gradients) > 3 else None
        return *gradients[:3], of_mask, None, None
