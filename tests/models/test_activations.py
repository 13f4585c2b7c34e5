"""Named activations: what they add up to, and what changing them does, for every attention."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import MASK, CharVocab
from birthplace_lm.errors import InputError
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.activations import Change, activation_modules, patch_activations, record_activations
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT

QUESTION = "Where was Ada Bee born?"
LATENTS = "perceiver"  # latent vectors in its inner blocks
NAMES = sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml"))
CANON = ["model.canon=true"]


def configured(attention: str, *overrides: str) -> DictConfig:
    return compose(["model=tiny", "model.n_layer=3", f"attention={attention}", *overrides]).model


def built(attention: str, *overrides: str) -> GPT:
    torch.manual_seed(0)
    model = build_model(configured(attention, *overrides), 20).eval()
    with torch.no_grad():  # zeros could hide an error
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def trained(attention: str) -> TrainedModel:
    vocab = CharVocab.from_text(QUESTION)
    torch.manual_seed(0)
    return TrainedModel(
        build_model(configured(attention), len(vocab)),
        vocab,
        QuestionTemplate.parse("Where was {name} born?"),
    )


def characters(seed: int) -> Tensor:
    return torch.randint(2, 20, (2, 30), generator=torch.Generator().manual_seed(seed))


def replaced_by(x: Tensor) -> Change:
    return lambda _: x


def recorded(model: GPT, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad(), record_activations(model) as activations:
        return model(ids), activations


@pytest.mark.parametrize("overrides", [[], CANON], ids=["", "canon"])
@pytest.mark.parametrize("attention", NAMES)
def test_the_residual_stream_is_the_sum_of_what_is_added(attention: str, overrides: list[str]) -> None:
    model = built(attention, *overrides)
    logits, x = recorded(model, characters(1))
    assert {*x} == {*activation_modules(model)}
    stream = x["embed"]
    mlps = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    for layer, mlp in enumerate(mlps):
        attn_out, mlp_post, mlp_out, after = (
            x[f"blocks.{layer}.{part}"] for part in ("attn_out", "mlp_post", "mlp_out", "resid_post")
        )
        assert torch.equal(mlp[2](mlp_post), mlp_out)
        if attention != LATENTS:
            torch.testing.assert_close(stream + attn_out + mlp_out, after)
        stream = after
    assert torch.equal(model.head(model.ln_f(stream)), logits)


@pytest.mark.parametrize("attention", NAMES)
def test_a_patch_with_all_that_follows_gives_the_other_texts_logits(attention: str) -> None:
    """resid_post holds all that later layers know, but `perceiver` also reads the embedding at the end."""
    model = built(attention)
    other, of_other = recorded(model, characters(2))
    own, of_own = recorded(model, characters(1))
    for layer in range(model.n_layer):
        name = f"blocks.{layer}.resid_post"
        changes = {name: replaced_by(of_other[name])}
        if attention == LATENTS:
            changes["embed"] = replaced_by(of_other["embed"])
        with torch.no_grad(), patch_activations(model, changes):
            assert torch.equal(model(characters(1)), other)
        with torch.no_grad(), patch_activations(model, {name: replaced_by(of_own[name])}):
            assert torch.equal(model(characters(1)), own)
    assert torch.equal(recorded(model, characters(1))[0], own), "the patches are gone"


def test_a_patch_at_one_position_changes_what_follows_only() -> None:
    model = built("vanilla")

    def double(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 12] *= 2
        return x

    own, _ = recorded(model, characters(1))
    with torch.no_grad(), patch_activations(model, {"blocks.0.attn_out": double}):
        changed, _ = recorded(model, characters(1))
    differ = (changed - own).abs().amax((0, 2)) > 1e-6
    assert differ.tolist() == [t >= 12 for t in range(30)]


def test_what_is_recorded_is_what_the_patches_leave() -> None:
    model = built("vanilla")
    with patch_activations(model, {"blocks.1.mlp_out": torch.zeros_like}):
        _, x = recorded(model, characters(1))
    assert not x["blocks.1.mlp_out"].any()
    torch.testing.assert_close(x["blocks.0.resid_post"] + x["blocks.1.attn_out"], x["blocks.1.resid_post"])


def test_a_patch_is_gone_after_an_error() -> None:
    model = built("vanilla")
    own, _ = recorded(model, characters(1))
    shorter = patch_activations(model, {"embed": lambda x: x[:, :1]})
    with pytest.raises(ValueError, match=r"embed: changed from \(2, 30, \d+\) to \(2, 1, \d+\)"), shorter:
        model(characters(1))
    assert torch.equal(recorded(model, characters(1))[0], own)


def test_a_name_that_there_is_not() -> None:
    with (
        pytest.raises(
            InputError, match=r"activation blocks.9.mlp_out: unknown; valid: embed, blocks.0.attn_out"
        ),
        patch_activations(built("vanilla"), {"blocks.9.mlp_out": torch.zeros_like}),
    ):
        pass


@pytest.mark.parametrize("attention", NAMES)
def test_the_logit_lens_ends_with_what_the_model_says(attention: str) -> None:
    lm = trained(attention)
    if attention == LATENTS:
        with pytest.raises(InputError, match="latent vectors"):
            lm.logit_lens(QUESTION + MASK)
        return
    text, lens = lm.logit_lens(f"{QUESTION}{MASK}#")
    ids = torch.tensor([lm.vocab.encode(text)])
    with torch.no_grad():
        logits = lm.model(ids)[0]
        embedding = lm.model.head(lm.model.ln_f(lm.model.embed(ids)))[0]
    assert text == QUESTION + MASK
    torch.testing.assert_close(lens[-1], logits.log_softmax(-1))
    torch.testing.assert_close(lens[0], embedding.log_softmax(-1))


def test_activations_of_a_text() -> None:
    lm = trained("vanilla")
    text, activations = lm.activations(QUESTION + MASK, ["embed", "blocks.2.mlp_post"])
    assert text == QUESTION + MASK
    width = lm.model.tok_emb.embedding_dim
    assert {name: tuple(x.shape) for name, x in activations.items()} == {
        "embed": (len(text), width),
        "blocks.2.mlp_post": (len(text), 4 * width),
    }
    assert lm.activations(QUESTION, [])[1] == {}
    with pytest.raises(TypeError, match="names is a string"):
        lm.activations(QUESTION, "embed")


@pytest.mark.parametrize("attention", NAMES)
def test_answers_are_read_in_parts_of_whole_rows(attention: str) -> None:
    """Bug: the last layer gave a change (N, C) for the positions whose logits were wanted."""
    lm = trained(attention)
    dimensions: dict[str, set[int]] = {}

    def turned_off(name: str) -> Change:
        def change(x: Tensor) -> Tensor:
            dimensions.setdefault(name, set()).add(x.dim())
            x = x.clone()
            x[:, :, 3] = 0
            return x

        return change

    before = lm.log_probabilities([QUESTION, QUESTION], ["Ada", "Bee"])
    with lm.patch({name: (lambda x: x) for name in activation_modules(lm.model)}):
        torch.testing.assert_close(lm.log_probabilities([QUESTION, QUESTION], ["Ada", "Bee"]), before)
    with lm.patch({name: turned_off(name) for name in activation_modules(lm.model)}):
        patched = lm.log_probabilities([QUESTION], ["Ada"])
        lm.answer_questions([QUESTION])
        ids = lm.vocab.encode(f"{QUESTION}{MASK}Ada{MASK}")
        logs = lm.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert set(dimensions) == {*activation_modules(lm.model)}
    assert {*map(frozenset, dimensions.values())} == {frozenset([3])}
    torch.testing.assert_close(patched, logs[-5:-1].gather(1, torch.tensor(ids[-4:])[:, None]).sum()[None])


def test_a_block_with_another_mlp_has_no_neurons() -> None:
    model = built("vanilla")
    block: Any = model.blocks[1]
    block.mlp = nn.Linear(block.ln2.normalized_shape[0], block.ln2.normalized_shape[0])
    names = [*activation_modules(model)]
    assert "blocks.1.mlp_out" in names
    assert "blocks.1.mlp_post" not in names
    assert "blocks.2.mlp_post" in names


def test_a_change_that_returns_nothing() -> None:
    model, nothing = built("vanilla"), Mock(return_value=None)
    patched = patch_activations(model, {"embed": nothing})
    with pytest.raises(ValueError, match="to NoneType; must keep its shape"), patched:
        model(characters(1))


def test_a_patch_changes_answers() -> None:
    """The model that is asked is the one that is patched, also where it reads in parts."""
    lm = trained("vanilla")
    before = lm.log_probabilities([QUESTION], ["Ada"])
    added = [name for name in activation_modules(lm.model) if name.endswith("_out")]
    with lm.patch(dict.fromkeys(added, torch.zeros_like)):
        patched = lm.log_probabilities([QUESTION], ["Ada"])
        (answer,) = lm.answer_questions([QUESTION])
    model = lm.model

    def without_layers(text: str) -> Tensor:
        with torch.no_grad():
            ids = torch.tensor([lm.vocab.encode(text)])
            return model.head(model.ln_f(model.embed(ids))).log_softmax(-1)[0]

    logs, ids = without_layers(f"{QUESTION}{MASK}Ada"), lm.vocab.encode(f"Ada{MASK}")
    torch.testing.assert_close(patched, logs[-4:].gather(1, torch.tensor(ids)[:, None]).sum()[None])
    assert not torch.allclose(before, patched)
    for t, character in enumerate(answer.text):
        logs = without_layers(f"{QUESTION}{MASK}{answer.text[:t]}")
        assert lm.vocab.decode([int(logs[-1].argmax())]) == character
