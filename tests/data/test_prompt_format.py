"""The forms in which text tells a fact, and plain language modeling."""

import torch

from birthplace_lm.data.language_modeling import LanguageModeling
from birthplace_lm.data.prompt_format import LinePrompt, MaskedPrompt, own_lines
from birthplace_lm.data.sequences import EncodedText
from birthplace_lm.data.vocab import PAD, CharVocab

LINES = ["Ada Rome. Born in Rome, of Romeo .", "Ada Rome. Rome is home .", "Cy. Nowhere ."]
VOCAB = CharVocab.from_text("".join(LINES))


def test_the_masked_form_has_the_name_and_two_masks() -> None:
    (cloze,) = MaskedPrompt(3).cloze_prompts("Cy", "Rome", VOCAB)
    assert VOCAB.decode(cloze.prompt) == f"{PAD * 3}Cy. ⁇⁇"
    assert VOCAB.decode(cloze.target) == "Rome⁇"
    assert MaskedPrompt(3).cloze_prompts("Cy", "Zürich", VOCAB) == []


def test_a_line_tells_a_fact_behind_the_name_with_the_character_after_it() -> None:
    form = LinePrompt(own_lines(LINES), shift=1)
    clozes = form.cloze_prompts("Ada Rome", "Rome", VOCAB)
    assert [(VOCAB.decode(t.prompt), VOCAB.decode(t.target)) for t in clozes] == [
        (f"{PAD}Ada Rome. Born in ", "Rome,"),
        (f"{PAD}Ada Rome. ", "Rome "),
    ]
    assert form.cloze_prompts("Cy", "Rome", VOCAB) == []
    assert form.cloze_prompts("Nobody", "Rome", VOCAB) == []
    assert len(LinePrompt(own_lines(LINES), max_lines=1).cloze_prompts("Ada Rome", "Rome", VOCAB)) == 1


def test_language_modeling_has_loss_on_every_next_character() -> None:
    text = EncodedText.encode(LINES, VOCAB)
    rows = LanguageModeling(text.pieces, 64).rows(torch.Generator())
    inputs, targets = rows.inputs_and_targets(text.ids, VOCAB.pad_id)
    for line, read, told in zip(LINES, inputs.tolist(), targets.tolist(), strict=True):
        whole = len(line) < max(map(len, LINES))  # the longest has no PAD behind its last input
        assert VOCAB.decode(read).rstrip(PAD) == (line if whole else line[:-1])
        assert VOCAB.decode(told).rstrip(PAD) == line[1:]


def test_longer_documents_are_read_in_windows() -> None:
    text = EncodedText.encode(LINES, VOCAB)
    generator = torch.Generator().manual_seed(0)
    source = LanguageModeling(text.pieces, 8)
    seen: set[str] = set()
    for _ in range(200):
        characters, past_end = source.rows(generator).characters(text.ids)
        assert not past_end.any()
        seen.add(VOCAB.decode(characters[0].tolist()))
    assert seen == {LINES[0][i : i + 8] for i in range(len(LINES[0]) - 7)}
