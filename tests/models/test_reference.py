"""Agreement with independent public implementations: logits, loss and every gradient."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from birthplace_lm.models.attention.rope import RopeAttention
from birthplace_lm.models.attention.synthesizer import SynthesizerAttention
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.gpt import GPT

ROOT = os.environ.get("BIRTHPLACE_LM_COURSE_DATA")
pytestmark = pytest.mark.skipif(ROOT is None, reason="needs the course's files: BIRTHPLACE_LM_COURSE_DATA")


@pytest.mark.parametrize(
    ("name", "attention"),
    [("vanilla", VanillaAttention), ("synthesizer", SynthesizerAttention), ("rope", RopeAttention)],
)
def test_agrees_with_the_reference(name: str, attention: type) -> None:
    with safe_open(Path(ROOT or "").parent / "reference" / f"{name}.safetensors", "pt") as file:
        sizes = {key: json.loads(value) for key, value in file.metadata().items() if key != "attention"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, safe_open is no dict
    keys = ("vocab_size", "n_layer", "n_head", "n_embd", "block_size")
    model = GPT(
        **{key: sizes[key] for key in keys},
        dropout=0.0,
        attention=attention,
        learned_positions="weights.pos_emb" in tensors,
    ).eval()
    model.load_state_dict(
        {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    )
    assert model.num_parameters == sizes["parameters"]

    for suffix in ("", "_short"):
        with torch.no_grad():
            logits = model(tensors[f"inputs{suffix}"])
        torch.testing.assert_close(logits, tensors[f"logits{suffix}"], atol=1e-4, rtol=0)

    loss = model.loss(tensors["inputs"], tensors["targets"], pad_id=0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"][0], atol=1e-4, rtol=0)
    gradients = {
        key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")
    }
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[key], atol=1e-4, rtol=0, msg=key)
