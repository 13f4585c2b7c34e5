"""Bits about places: identities that hold for any model, and scoring against the full forward pass."""

import math

import pytest
import torch

from birthplace_lm.config.compose import compose
from birthplace_lm.data.prompt_format import ClozePrompt, LinePrompt, MaskedPrompt
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.inference.decoding import question_prompt
from birthplace_lm.inference.knowledge import (
    Bits,
    PlacePrior,
    bits_about,
    log_probabilities,
    recall,
    score_cloze_prompts,
)
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT

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


def test_what_the_text_does_not_tell_has_no_bits() -> None:
    known = bits_about(PRIOR, ["Rome"], [0.0])
    assert bits_about(PRIOR, ["Rome", "Paris"], [0.0, None]) == pytest.approx(known / 2)


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
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + target[:-1]]))[0].log_softmax(-1)
        expected = sum(log_p[len(prompt) - 1 + i, s].item() for i, s in enumerate(target))
        assert value == pytest.approx(expected, abs=1e-5)
    assert got[3] == -math.inf


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny", "model.block_size=32"]).model, len(VOCAB)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_greedy_means_that_decoding_gives_the_target(model: GPT) -> None:
    prompt = VOCAB.encode("Ada Bo. ")
    ids = [*prompt]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    target = ids[len(prompt) :]
    other = [*target[:-1], (target[-1] + 1) % len(VOCAB)]
    too_long = ClozePrompt([*prompt] * 5, target)
    clozes = [
        ClozePrompt(prompt, other),
        ClozePrompt(prompt, target),
        too_long,
        ClozePrompt(prompt[:3], target),
    ]
    log_p, greedy = score_cloze_prompts(model, clozes, VOCAB.pad_id)
    assert greedy[:3].tolist() == [False, True, False]
    assert log_p[2] == -math.inf
    assert log_p[1] > log_p[0]


def test_several_lines_about_a_person_are_one_mixture(model: GPT) -> None:
    lines = ["Ada Bo. born Rome.", "Ada Bo. was here Rome ."]
    form = LinePrompt({"Ada Bo": [*lines, lines[0]], "Cy": ["Cy. born Paris."]})
    both, nothing = recall(model, VOCAB, form, ["Ada Bo", "Cy"], ["Rome", "Rome"])
    single = [recall(model, VOCAB, LinePrompt({"Ada Bo": [line]}), ["Ada Bo"], ["Rome"])[0] for line in lines]
    mean = sum(math.exp(one.log_p or 0.0) for one in single) / 2
    assert both.log_p == pytest.approx(math.log(mean), abs=1e-5)
    assert (nothing.log_p, nothing.right) == (None, None)
    far = f"Ada Bo. {'so ' * model.block_size}Rome ."
    beyond = LinePrompt({"Ada Bo": [far, lines[0]], "Cy": [far]})
    near, unread = recall(model, VOCAB, beyond, ["Ada Bo", "Cy"], ["Rome", "Rome"])
    assert near == single[0]  # a line beyond the block is none
    assert (unread.log_p, unread.right) == (None, None)
    (masked,) = recall(model, VOCAB, MaskedPrompt(2), ["Ada Bo"], ["Rome"])
    prompt = [VOCAB.pad_id] * 2 + VOCAB.encode("Ada Bo. ") + [VOCAB.mask_id] * 2
    assert masked.log_p == pytest.approx(log_probabilities(model, VOCAB, [prompt], ["Rome"]).item(), abs=1e-5)
