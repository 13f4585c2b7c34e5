"""Float32 products by oneDNN: as exact as MKL's, kept by a run that continues, and never left switched on."""

import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from omegaconf import OmegaConf
from stage import Stop, StopAt, digest, fit
from torch import nn

from birthplace_lm.config.compose import compose
from birthplace_lm.models import float32_products as products
from birthplace_lm.models.build import build_model
from birthplace_lm.models.float32_products import MKL, ONEDNN, current_library, float32_products
from birthplace_lm.runs import checkpoint
from birthplace_lm.runs.checkpoint import LoadedCheckpoint
from birthplace_lm.training import pipeline, preflight
from birthplace_lm.training.callbacks import checkpointing

needs_onednn = pytest.mark.skipif(not products.onednn_is_exact(), reason="oneDNN does not compute in float32")


def loss_and_gradients(attention: str, library: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = compose([f"attention={attention}", "model=tiny", "model.n_embd=64", "model.n_head=4"])
    model = build_model(config.model, 50)
    ids = torch.randint(2, 50, (5, 33), generator=torch.Generator().manual_seed(1))
    with float32_products(library):
        loss = model.loss(ids[:, :-1], ids[:, 1:], 0)
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@needs_onednn
@pytest.mark.parametrize("attention", ["vanilla", "synthesizer", "alibi", "gqa", "linear", "differential"])
def test_both_libraries_give_the_same_loss_and_gradients(attention: str) -> None:
    for ours, theirs in zip(*(loss_and_gradients(attention, one) for one in (ONEDNN, MKL)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4)


@needs_onednn
@pytest.mark.parametrize("learned_mask", [False, True])
def test_fused_attention_passes_gradients_to_all_that_need_them(learned_mask: bool) -> None:
    torch.manual_seed(0)
    q, k, v = inputs = [torch.randn(2, 3, 9, 4, requires_grad=True) for _ in range(3)]
    mask = torch.randn(1, 3, 9, 9, requires_grad=learned_mask)
    grad = torch.randn(2, 3, 9, 4)
    results = []
    for library in (MKL, ONEDNN):
        with float32_products(library):
            y = products.fused_attention(q, k, v, mask, False, 0.3)
            wanted = [*inputs, mask] if learned_mask else inputs
            results.append([y.detach(), *torch.autograd.grad(y, wanted, grad)])
    expected = (inputs[0] @ inputs[1].mT * 0.3 + mask).softmax(-1) @ inputs[2]
    torch.testing.assert_close(results[1][0], expected.detach())
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_setting_ends_with_the_block_also_after_an_error() -> None:
    def fail() -> None:
        with float32_products(ONEDNN):
            assert current_library() == (ONEDNN if products.onednn_is_exact() else MKL)
            with float32_products(MKL):
                assert current_library() == MKL
            assert current_library() == (ONEDNN if products.onednn_is_exact() else MKL)
            raise ZeroDivisionError

    assert current_library() == MKL
    with pytest.raises(ZeroDivisionError):
        fail()
    assert current_library() == MKL


def test_where_onednn_is_not_exact_mkl_multiplies(monkeypatch: Any) -> None:
    monkeypatch.setattr(products, "onednn_is_exact", lambda: False)
    with float32_products(ONEDNN):
        assert current_library() == MKL


def test_a_product_in_bfloat16_would_not_pass_as_exact(monkeypatch: Any) -> None:
    """As on a processor with AMX, where the same setting multiplies in bfloat16."""

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x.bfloat16() @ weight.bfloat16().T).float()

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert not products.onednn_is_exact()


def test_a_choice_for_a_cpu_is_none_for_a_gpu(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bugs: oneDNN ended a stage on a GPU, and beside a GPU nothing was measured for a CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(preflight, "faster_library", lambda _: ONEDNN)
    metadata = {"data": {}, "config_sha256": "", "environment": {"float32_products": ONEDNN}}
    of_a_cpu = LoadedCheckpoint(Path("step-00000001.ckpt"), {"birthplace_lm": metadata})
    callback = checkpointing.CheckpointCallback(Path(), 1, 2, metadata, None)
    for accelerator, library in (("cpu", ONEDNN), ("gpu", MKL), ("auto", MKL)):
        config = configure("pretrain=none").copy()
        OmegaConf.set_readonly(config, False)
        for config.float32_products in ("auto", ONEDNN):
            config.trainer.accelerator = accelerator
            assert preflight._library(config) == library
        assert pipeline._library_of(of_a_cpu, accelerator) == library
        trainer = Mock(is_global_zero=False)
        trainer.strategy.root_device.type = "cpu" if accelerator == "cpu" else "cuda"
        with patch.object(checkpointing, "multiply_with") as multiply_with:
            callback.on_load_checkpoint(trainer, Mock(), of_a_cpu.content)
        assert multiply_with.called == (library == ONEDNN)


@needs_onednn
def test_a_stage_keeps_its_library(configure: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is part of no name, so the same command may find another: after a kill the bits must not change."""
    caplog.set_level(logging.INFO, "birthplace_lm")
    left_alone, stopped = tmp_path / "left alone", tmp_path / "stopped"
    fit(configure("float32_products=onednn", "checkpoint.every_n_steps=1"), "pretrain", left_alone)
    with pytest.raises(Stop):
        fit(
            configure("float32_products=onednn", "checkpoint.every_n_steps=1"),
            "pretrain",
            stopped,
            StopAt("on_train_batch_end", 3),
        )
    fit(configure("float32_products=mkl", "checkpoint.every_n_steps=1"), "pretrain", stopped)
    saved = checkpoint.load(checkpoint.list_checkpoints(stopped)[0])["birthplace_lm"]
    assert saved["environment"]["float32_products"] == "onednn"
    assert caplog.text.count("products by onednn") == 3
    assert "products by mkl" not in caplog.text
    assert digest(stopped) == digest(left_alone)
    assert current_library() == MKL


@needs_onednn
@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="torch keeps to MKL without AVX-512",
)
def test_linear_layers_are_really_multiplied_by_onednn() -> None:
    """The profiler cannot tell; the last bits do, in one of several sizes."""
    torch.manual_seed(0)
    differ = False
    for size in (64, 256, 300):
        layer, x = nn.Linear(size, size), torch.randn(200, size)
        results = []
        for library in (MKL, ONEDNN):
            with float32_products(library):
                results.append(layer(x))
        differ |= not torch.equal(*results)
    assert differ
