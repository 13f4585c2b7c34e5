"""Bits about places: identities that hold for any model, and scoring against the full forward pass."""

import math

import pytest
import torch

from birthplace_lm.config.compose import compose
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.data.vocab import PAD, CharVocab
from birthplace_lm.inference.decoding import question_prompt
from birthplace_lm.inference.knowledge import (
    Bits,
    PlacePrior,
    bits_about,
    log_probabilities,
    text_prompt,
)
from birthplace_lm.models.build import build_model

VOCAB = CharVocab.from_text("Where was born? AdaBoCyRomeParis. ")
PRIOR = PlacePrior({"Rome": 3, "Paris": 1})


def test_the_prior_is_a_distribution_over_twice_as_many_places() -> None:
    assert PRIOR.bits("Rome") == pytest.approx(-math.log2(3.3 / 5.2))
    seen = 2 ** -PRIOR.bits("Rome") + 2 ** -PRIOR.bits("Paris")
    assert seen + 2 * 2 ** -PRIOR.bits("Lima") == pytest.approx(1)


def test_a_model_that_knows_everything_has_all_bits_of_the_prior() -> None:
    places = ["Rome", "Rome", "Paris", "Lima"]
    assert bits_about(PRIOR, places, [0.0] * 4) == pytest.approx(sum(map(PRIOR.bits, places)) / 4)


def test_the_prior_itself_has_none() -> None:
    places = ["Rome", "Paris", "Lima"]
    assert bits_about(PRIOR, places, [-PRIOR.bits(p) * math.log(2) for p in places]) == pytest.approx(0)


def test_a_part_of_the_probability_on_something_else_costs_its_logarithm() -> None:
    """log2(1/q) + log2(1 - e)."""
    expected = PRIOR.bits("Rome") + math.log2(0.75)
    assert bits_about(PRIOR, ["Rome"], [math.log(0.75)]) == pytest.approx(expected)


def test_the_extraction_gap() -> None:
    assert Bits(8.5, 4.0, 5.0).gap == pytest.approx(0.2)
    assert Bits(8.5, 6.0, 5.0).gap == pytest.approx(-0.2)
    assert Bits(8.5, 4.0, None).gap is None
    assert Bits(8.5, 1.0, -0.1).gap is None


def test_prompts() -> None:
    template = QuestionTemplate.parse("Where was {name} born?")
    assert VOCAB.decode(text_prompt(VOCAB, template, "Ada Bo", None)) == f"{PAD * 10}Ada Bo. ⁇⁇"
    assert VOCAB.decode(text_prompt(VOCAB, template, "Ada", 0)) == "Ada. ⁇⁇"


def test_log_probabilities_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny", "model.block_size=32"]).model, len(VOCAB)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    names, answers = ["Ada", "Bo", "Cy Ada Bo", "Ada Bo Cy"], ["Rome", "Paris", "Roma", "Zürich"]
    prompts = [question_prompt(model, VOCAB, f"Where was {name} born?") for name in names]
    got = log_probabilities(model, VOCAB, prompts, answers)
    for prompt, answer, value in zip(prompts[:3], answers[:3], got.tolist(), strict=False):
        target = [*VOCAB.encode(answer), VOCAB.mask_id]
        if len(prompt) + len(target) - 1 > 32:
            assert value == -math.inf
            continue
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + target[:-1]]))[0].log_softmax(-1)
        expected = sum(log_p[len(prompt) - 1 + i, s].item() for i, s in enumerate(target))
        assert value == pytest.approx(expected, abs=1e-5)
    assert got[3] == -math.inf
