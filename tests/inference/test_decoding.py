"""Batched, cached decoding against one name at a time without a cache."""

import random

import pytest
import torch
from torch import Tensor, nn

from birthplace_lm.data.vocab import MASK, PAD, CharVocab
from birthplace_lm.inference.decoding import Answer, answer_questions
from birthplace_lm.models.attention.synthesizer import SynthesizerAttention
from birthplace_lm.models.attention.vanilla import VanillaAttention
from birthplace_lm.models.gpt import GPT

VOCAB = CharVocab.from_text("Where was born?ABCDéxyz\n")
NAMES = ["A", "Baxter", "Céz", "D" * 70, "xy" * 60, "z" * 300, "", "was born?", "éé éé"]
NAMES += ["Dan Bax", "Rob", "Ahab Ahab", "Cyn", "Zoé", "Ben Byron", "Sara de Broc"]
QUESTIONS = [f"Where was {name} born?" for name in NAMES]


SEEDS: dict[type, int] = {
    VanillaAttention: 1,
    SynthesizerAttention: 3,
}  # of networks whose answers differ in length


def make(attention: type = VanillaAttention, block_size: int = 128) -> GPT:
    """A network whose logits are far apart, so that rounding changes no answer."""
    torch.manual_seed(SEEDS[attention])
    model = GPT(len(VOCAB), 2, 2, 32, block_size, dropout=0.5, attention=attention)
    assert model.pos_emb is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.pos_emb.mul_(3.0)
        towards_mask = model.head.weight[VOCAB.mask_id]
        model.ln_f.bias.add_(1.5 * towards_mask / towards_mask.norm())
    return model.eval()


@pytest.fixture(params=[VanillaAttention, SynthesizerAttention])
def model(request: pytest.FixtureRequest) -> GPT:
    return make(request.param)


@pytest.fixture
def silent() -> GPT:
    """A network that never emits MASK."""

    def forbid(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor([VOCAB.mask_id]), -1e9)

    model = make()
    model.head.register_forward_hook(forbid)
    return model


@torch.no_grad()
def naive(model: GPT, question: str, longest: int = 32) -> tuple[str, float]:
    """The course's way: a full forward pass for every character of every name."""
    characters = [c for c in question if c in VOCAB.symbols and c not in (PAD, MASK)]
    prompt = "".join(characters[-(model.block_size - longest - 1) :]) + MASK
    text = prompt
    while len(text) - len(prompt) < longest and text.count(MASK) < 2:
        logits = model(torch.tensor([VOCAB.encode(text)]))[0, -1]
        text += VOCAB.symbols[int(logits.argmax())]
    if text.count(MASK) < 2:  # bug: the score of an answer that is cut off left out that it is complete
        text += MASK
    ids = torch.tensor([VOCAB.encode(text)])
    steps = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
    return text.split(MASK)[1], steps[len(prompt) - 1 :].sum().item()


def test_the_last_row_of_a_batch_is_not_the_longest() -> None:
    """A longer question whose answer ends first leaves a shorter one in a cache made for both."""
    model = make()
    alone = {question: answer_questions(model, VOCAB, [question])[0] for question in QUESTIONS}
    short = [question for question in QUESTIONS if len(alone[question].text) <= 1]
    pairs = [(a, b) for a in short for b in QUESTIONS if len(a) > len(b) and len(alone[b].text) > 1]
    assert len(pairs) > 5
    for pair in pairs:
        for question, answer in zip(pair, answer_questions(model, VOCAB, pair), strict=True):
            assert answer.text == alone[question].text
            assert answer.log_probability == pytest.approx(alone[question].log_probability, abs=1e-3)


def test_equals_the_naive_loop(model: GPT) -> None:
    answers = answer_questions(model, VOCAB, QUESTIONS)
    lengths = {len(a.text) for a in answers}
    assert len(lengths) > 3, "the test needs answers of different lengths"
    assert max(lengths) == 32 > min(lengths)
    for question, got in zip(QUESTIONS, answers, strict=True):
        text, log_probability = naive(model, question)
        assert got.text == text
        assert got.log_probability == pytest.approx(log_probability, abs=1e-3)


@pytest.mark.parametrize("end", ["", "?", " born?"])
def test_a_shared_prefix_of_questions(model: GPT, end: str) -> None:
    """Nothing in common, all but the last character, one question the beginning of another."""
    for questions in ([f"{c}A{end}" for c in "ABx"], ["AB", "ABC"], [f"Where was A{end}"] * 3):
        expected = [naive(model, question)[0] for question in questions]
        assert [a.text for a in answer_questions(model, VOCAB, questions)] == expected


@pytest.mark.parametrize("batch_size", [1, 3, 7, 512])
def test_the_batch_changes_no_answer(model: GPT, batch_size: int) -> None:
    expected = dict(zip(QUESTIONS, answer_questions(model, VOCAB, QUESTIONS, batch_size=5), strict=True))
    order = random.Random(batch_size).sample(QUESTIONS, len(QUESTIONS)) + QUESTIONS[:2]
    answers = answer_questions(model, VOCAB, order, batch_size=batch_size)
    assert [a.text for a in answers] == [expected[question].text for question in order]
    scores = [expected[question].log_probability for question in order]
    assert [a.log_probability for a in answers] == pytest.approx(scores, abs=1e-3)


def test_stops_at_32_characters(silent: GPT) -> None:
    for got in answer_questions(silent, VOCAB, QUESTIONS):
        assert len(got.text) == 32
        assert MASK not in got.text
    assert {len(a.text) for a in answer_questions(silent, VOCAB, QUESTIONS, max_answer_length=5)} == {5}


def test_an_answer_may_be_empty() -> None:
    model = make()
    model.head.register_forward_hook(lambda _m, _i, logits: logits.index_fill(-1, torch.tensor([1]), 99.0))
    for got in answer_questions(model, VOCAB, QUESTIONS):
        assert got.text == ""
        assert got.log_probability == pytest.approx(0, abs=1e-3)


def test_no_questions_no_answers(model: GPT) -> None:
    assert answer_questions(model, VOCAB, []) == []


@pytest.mark.parametrize("dropped", ["ß", "漢字", "\x00", PAD, MASK + PAD, "😀"])
def test_unknown_characters_are_dropped(model: GPT, dropped: str) -> None:
    clean, dirty = "Where was Baxter born?", f"{dropped}Where was Bax{dropped}ter born?{dropped}"
    assert answer_questions(model, VOCAB, [dirty]) == answer_questions(model, VOCAB, [clean])


def test_a_question_of_unknown_characters_is_an_empty_one(model: GPT) -> None:
    assert [a.text for a in answer_questions(model, VOCAB, ["ßßß", ""])] == [naive(model, "")[0]] * 2


def test_of_a_long_question_the_end_is_read(silent: GPT) -> None:
    question = "Where was " + "xyzA" * 500 + " born?"
    assert answer_questions(silent, VOCAB, [question]) == answer_questions(silent, VOCAB, [question[-95:]])
    assert answer_questions(silent, VOCAB, [question[-95:]]) != answer_questions(
        silent, VOCAB, [question[-94:]]
    )


@pytest.mark.parametrize("block_size", [8, 32, 33, 34, 63])
def test_a_block_without_room_for_32_characters(block_size: int) -> None:
    """`ids[-(max_length - 1):]` was the full question, or none of it, once `max_length` was 1 or less."""
    model, question = make(block_size=block_size), "xyzA" * 30
    longest = block_size // 2
    got = answer_questions(model, VOCAB, [question, "A"])
    assert len(got[0].text) <= longest
    assert [a.text for a in got] == [naive(model, q, longest)[0] for q in (question, "A")]


def test_the_model_is_left_as_it_was(model: GPT) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    answer_questions(model, VOCAB, QUESTIONS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    model(torch.tensor([[2]])).sum().backward()  # nothing of the cache is left in it


@pytest.mark.parametrize(
    ("text", "line"), [("Rome", "Rome"), ("Ro\nme", "Ro me"), ("a\r\nb\x85c", "a b c"), ("\n", ""), ("", "")]
)
def test_an_answer_is_one_line_of_a_file(text: str, line: str) -> None:
    assert Answer(text, 0.0).line == line
