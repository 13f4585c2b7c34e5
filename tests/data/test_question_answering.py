"""Name to birthplace: the loss is on MASK, place, MASK and nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data.question_answering import QuestionAnswering, without_non_ascii
from birthplace_lm.data.sequences import EncodedText
from birthplace_lm.data.vocab import MASK, PAD, CharVocab


def pairs(questions: list[str], places: list[str]) -> list[tuple[str, str]]:
    vocab = CharVocab.from_text("".join([*questions, *places]))
    text = EncodedText.encode([*questions, *places], vocab)
    source = QuestionAnswering(*text.pieces.split(len(questions)))
    assert len(source) == len(questions)
    inputs, targets = source.rows(torch.Generator()).inputs_and_targets(text.ids, vocab.pad_id)
    return [
        (vocab.decode(x), vocab.decode(y)) for x, y in zip(inputs.tolist(), targets.tolist(), strict=True)
    ]


def test_example_in_the_docstring() -> None:
    inputs = f"Where was Ada Bo born?{MASK}Rome"
    targets = f"{PAD * 21}{MASK}Rome{MASK}"
    assert pairs(["Where was Ada Bo born?"], ["Rome"]) == [(inputs, targets)]
    lines = (line.split(None, 1) for line in (QuestionAnswering.__doc__ or "").splitlines())
    shown = {words[0]: words[1].split("   ")[0] for words in lines if len(words) == 2}
    assert shown["inputs"].replace("_", MASK) == inputs
    assert shown["targets"].replace(".", PAD).replace("_", MASK) == targets  # bug: one dot too many


questions = st.lists(st.tuples(st.text("Wh é?", min_size=1), st.text("Romé ", min_size=1)), min_size=1)


@given(questions)
def test_loss_on_mask_place_mask(rows: list[tuple[str, str]]) -> None:
    width = max(len(question) + len(place) + 2 for question, place in rows)
    built = pairs(*map(list, zip(*rows, strict=True)))
    for (question, place), (inputs, targets) in zip(rows, built, strict=True):
        rest = PAD * (width - len(question) - len(place) - 2)
        assert inputs + PAD == f"{question}{MASK}{place}{MASK}{rest}"[:-1] + PAD
        assert targets == PAD * (len(question) - 1) + f"{MASK}{place}{MASK}" + rest


def test_nothing_is_drawn() -> None:
    """The same rows in every epoch, and the generator is left as it was."""
    source = QuestionAnswering(torch.tensor([[65, 3]]), torch.tensor([[68, 2]]))
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert source.rows(generator) is source.rows(generator)
    assert torch.equal(generator.get_state(), before)


@given(st.text())
def test_ascii_only_keeps_the_ascii_characters(text: str) -> None:
    assert without_non_ascii(text) == "".join(c for c in text if ord(c) < 128)
