"""A user's attention that breaks the contract is refused; every variant of the package passes."""

import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from own_parts import LooksAhead
from stage import quick
from torch import Tensor

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.data.corpora.corpus import read_corpus
from birthplace_lm.errors import InputError
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.attention_check import ContractError, check_attention
from birthplace_lm.training.preflight import preflight


class LooksAheadInTheThirdLayer(VanillaAttention):
    def __init__(self, layer: int, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.attention = (LooksAhead if layer == 2 else VanillaAttention)(**sizes)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return self.attention(x, cache)


class LooksAheadInLongTexts(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        y = super().forward(x, cache)
        return y + x.mean(1, keepdim=True) if x.shape[1] > 24 else y


class IgnoresTheCache(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x)


class IgnoresPositions(VanillaAttention):
    """Right as long as all rows stand at the same position, as in training."""

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        position = torch.arange(x.shape[1])[None] if cache is None else cache.positions[:1]
        return super().forward(x + 0.1 * position[..., None], cache)


class StopsGradients(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x if cache is None else x.detach(), cache)


class MakesItsOwnMask(VanillaAttention):
    def attend_to(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, mask: Any = None) -> Tensor:
        if cache is not None:
            mask = torch.arange(cache.mask.shape[-1]) <= cache.positions[:, None, :, None]
        return super().attend_to(q, k, v, cache, mask)


class IsNotFinite(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x, cache) / 0.0


class LooksAheadWithinChunks(VanillaAttention):
    """Of 32 characters, a size at whose borders a change shows nothing."""

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        y = super().forward(x, cache)
        return y + torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in x.split(32, 1)], 1)


class ReturnsWeightsToo(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Any:
        return super().forward(x, cache), None


class ReturnsOneVector(VanillaAttention):
    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return super().forward(x, cache)[:, -1:]


FAULTS = {
    LooksAhead: "later characters change the logits of a position",
    LooksAheadInTheThirdLayer: "later characters change the logits of a position",
    LooksAheadWithinChunks: "later characters change the logits of a position",
    ReturnsWeightsToo: "forward returns a tuple; must return a tensor of (3, 5, 8), as x is",
    ReturnsOneVector: "forward returns a tensor of (3, 1, 8); must return a tensor of (3, 5, 8), as x is",
    LooksAheadInLongTexts: "later characters change the logits of a position",
    IgnoresTheCache: "logits with a cache are not those without one",
    IgnoresPositions: "logits with a cache are not those without one",
    StopsGradients: "gradients with a cache are not those without one",
    IsNotFinite: "its results are not finite",
}


def small(attention: Any) -> dict[str, Any]:
    return {
        "n_layer": 3,
        "n_head": 2,
        "n_embd": 8,
        "block_size": 32,
        "dropout": 0.1,
        "attention": attention,
    }


@pytest.mark.parametrize(
    "name", [*sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml")), "vanilla+canon"]
)
def test_every_variant_of_the_package_passes(name: str) -> None:
    attention, _, canon = name.partition("+")
    config = compose([f"attention={attention}", "model=tiny", f"model.canon={canon == 'canon'}"])
    state = torch.random.get_rng_state()
    check_attention(OmegaConf.to_container(config.model))  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("mask_pads", [False, True])
@pytest.mark.parametrize("attention", FAULTS)
def test_what_is_wrong_is_said(attention: Any, mask_pads: bool) -> None:
    """Bug: with masked PADs there always was a cache, and what was wrong with one alone was not noticed."""

    def sizes(attention: Any) -> dict[str, Any]:
        return small(attention) | {"mask_pads": mask_pads}

    long = sizes(attention) | {"block_size": 128}
    with pytest.raises(ContractError, match=re.escape(FAULTS[attention])):
        check_attention(long if attention is LooksAheadWithinChunks else sizes(attention))
    check_attention(sizes(VanillaAttention))
    with pytest.raises(ValueError, match=r"attention: makes a function; must make a torch\.nn\.Module"):
        check_attention(sizes(lambda n_embd, n_head, block_size, dropout: lambda x, cache: x))


def test_an_attention_that_reads_masked_pads_is_refused() -> None:
    check_attention(small(MakesItsOwnMask))
    with pytest.raises(ContractError, match="mask_pads=true, but PADs change the logits of other characters"):
        check_attention(small(MakesItsOwnMask) | {"mask_pads": True})


def test_a_run_with_it_does_not_start(people: Any, tmp_path: Any) -> None:
    config = quick(people, tmp_path, "plugins=[own_parts]", "pretrain=none")
    corpus = read_corpus(config.data, config.model.block_size)

    def refused(attention: str) -> str:
        changed = OmegaConf.merge(config, {"model": {"attention": {"_target_": f"own_parts.{attention}"}}})
        with pytest.raises(InputError) as caught:
            preflight(changed, corpus)  # type: ignore[arg-type]
        return str(caught.value)

    assert refused("LooksAhead").startswith("model: own_parts.LooksAhead: later characters change the logits")
    assert "RuntimeError: Tensor.item() cannot be called on meta" in refused("ReadsANumber")
    assert "a model is first built without memory" in refused("ReadsANumber")
