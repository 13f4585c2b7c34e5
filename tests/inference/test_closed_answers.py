"""Every answer of a closed set, against scoring them one by one."""

import math
from typing import Any

import pytest
import torch

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.inference.closed_answers import answer_log_probabilities
from birthplace_lm.inference.decoding import answer_questions
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT

PLACES = ["Rome", "Romeo", "Rom", "Paris", "Par", "Rimini", "Roma", "P", "San Remo", "Pa"]
VOCAB = CharVocab.from_text("Where was born? AdaBoCyRomeParisiminiSanRemo ")
NAMES = sorted(path.stem for path in (conf_dir() / "attention").glob("*.yaml"))


def network(*overrides: str) -> GPT:
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny", *overrides]).model, len(VOCAB)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def prompt(question: str) -> list[int]:
    return [*VOCAB.encode(question), VOCAB.mask_id]


def one_by_one(model: GPT, ids: list[int], answer: str) -> float:
    """The closing MASK is predicted and never read: bug: an answer that fills the block had probability 0."""
    target = [*VOCAB.encode(answer), VOCAB.mask_id]
    return one(model, ids, target) if len(ids) + len(target) <= model.block_size + 1 else -math.inf


def one(model: GPT, ids: list[int], target: list[int]) -> float:
    """log P(target | ids)."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids + target[:-1]]))[0, len(ids) - 1 :].log_softmax(-1)
    return sum(log_p[i, symbol].item() for i, symbol in enumerate(target))


@pytest.mark.parametrize("attention", NAMES)
def test_equals_scoring_one_by_one(attention: str) -> None:
    model = network(f"attention={attention}")
    prompts = [prompt(f"Where was {name} born?") for name in ("Ada", "Ada Bo", "Cy Ada Bo")]
    scores = answer_log_probabilities(model, VOCAB, prompts, PLACES)
    expected = torch.tensor([[one_by_one(model, ids, place) for place in PLACES] for ids in prompts])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert (scores.exp().sum(1) < 1).all()


def test_the_greedy_answer_has_the_probability_that_decoding_gives_it() -> None:
    model = network("model.block_size=32")
    bias = 0.7 * torch.nn.functional.one_hot(torch.tensor(VOCAB.mask_id), len(VOCAB))  # so that answers end
    model.head.register_forward_hook(lambda module, args, logits: logits + bias)
    questions = ["Where was Ada born?", "Where was Bo born?"]
    for question, answer in zip(
        questions, answer_questions(model, VOCAB, questions, max_answer_length=4), strict=True
    ):
        assert 0 < len(answer.text) < 4
        (score,) = answer_log_probabilities(model, VOCAB, [prompt(question)], [answer.text])[0].tolist()
        assert score == pytest.approx(answer.log_probability, abs=1e-5)


def test_all_texts_up_to_a_length_and_all_longer_ones_sum_to_one() -> None:
    """With three symbols: P(ends within 2 symbols) + P(none of the first 3 symbols is MASK) = 1."""
    vocab = CharVocab.from_text("ab")
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny"]).model, len(vocab)).eval()
    others = [i for i in range(len(vocab)) if i != vocab.mask_id]
    ids = [vocab.mask_id]
    texts = [(), *((i,) for i in others), *((i, j) for i in others for j in others)]
    ends = sum(math.exp(one(model, ids, [*text, vocab.mask_id])) for text in texts)
    longer = sum(math.exp(one(model, ids, [*text, k])) for text in texts if len(text) == 2 for k in others)
    assert ends + longer == pytest.approx(1, abs=1e-5)
    words = ["a", "b", "aa", "ab", "ba", "bb"]
    scores = answer_log_probabilities(model, vocab, [ids], words)[0].tolist()
    expected = [one(model, ids, [*vocab.encode(word), vocab.mask_id]) for word in words]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_what_does_not_fit_or_is_unknown_has_probability_zero() -> None:
    model = network("model.block_size=16")
    prompts = [prompt("Ada"), prompt("Where was Ada")]  # 4 and 14 characters
    scores = answer_log_probabilities(model, VOCAB, prompts, ["P", "Ro", "Rom", "Romeo", "Zürich"])
    fitting = ("P", "Ro", "Rom", "Romeo")  # behind 14 of 16 characters there is room for Ro
    expected = torch.tensor([[one_by_one(model, ids, place) for place in fitting] for ids in prompts])
    torch.testing.assert_close(scores[:, :4], expected, atol=1e-5, rtol=1e-5)
    assert (scores[1] == -math.inf).tolist() == [False, False, True, True, True]
    assert (scores[:, 4] == -math.inf).all()
    for bad in ([], [1] * 16):
        with pytest.raises(ValueError, match="must have 1 to 15 characters"):
            answer_log_probabilities(model, VOCAB, [bad], ["P"])


def test_batches_do_not_matter(monkeypatch: Any) -> None:
    model = network()
    prompts = [prompt(f"Where was {'Ada ' * n}born?") for n in range(1, 8)]
    whole = answer_log_probabilities(model, VOCAB, prompts, PLACES)
    monkeypatch.setattr("birthplace_lm.inference.closed_answers.BATCH", 3)
    torch.testing.assert_close(answer_log_probabilities(model, VOCAB, prompts, PLACES), whole)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("top", [1, 3])
def test_the_likeliest_are_found_without_scoring_all(rows: int, top: int) -> None:
    model = network()
    draw = torch.Generator().manual_seed(0)
    letters = "ABCRPaeimnorsd"
    places = sorted(
        {"".join(letters[i] for i in torch.randint(14, (6,), generator=draw)) for _ in range(300)}
    )
    prompts = [prompt(f"Where was {'Bo ' * n}born?") for n in range(rows)]
    calls = []
    model.ln_f.register_forward_hook(lambda *args: calls.append(1))
    whole = answer_log_probabilities(model, VOCAB, prompts, places)
    calls_for_all = len(calls)
    some = answer_log_probabilities(model, VOCAB, prompts, places, top=top)
    torch.testing.assert_close(some.topk(top, 1), whole.topk(top, 1))
    assert len(calls) - calls_for_all < calls_for_all  # an untrained model: little is left out
    assert (some == -math.inf).any()
