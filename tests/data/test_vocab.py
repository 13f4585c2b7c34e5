"""The vocabulary: ids as the course numbers them, and no character that silently becomes another."""

import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthplace_lm.data import vocab as module
from birthplace_lm.data.vocab import MASK, PAD, CharVocab
from birthplace_lm.errors import InputError

characters = st.characters(exclude_categories=["Cs"], exclude_characters=[PAD, MASK])


def test_ids_are_pad_mask_then_code_point_order() -> None:
    vocab = CharVocab.from_text("bad\nÉb")
    assert vocab.symbols == ("\u25a1", "\u2047", "\n", "a", "b", "d", "É")
    assert (vocab.pad_id, vocab.mask_id, len(vocab)) == (0, 1, 7)
    assert vocab.encode("É" + vocab.mask + vocab.pad) == [6, 1, 0]


def test_docstring_example() -> None:
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)


@given(st.text(characters, min_size=1))
def test_decode_inverts_encode(text: str) -> None:
    vocab = CharVocab.from_text(text)
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    assert all(2 <= i < len(vocab) for i in ids)


@given(st.text("abé\n"), st.text(f"abé\n{PAD}{MASK}"))
def test_encode_known_keeps_what_is_known_and_names_the_rest(corpus: str, typed: str) -> None:
    vocab = CharVocab.from_text(corpus)
    ids, dropped = vocab.encode_known(typed)
    assert vocab.decode(ids) == "".join(c for c in typed if c in corpus)
    assert dropped == "".join(c for c in typed if c not in corpus)


@given(st.text(characters))
def test_survives_json(corpus: str) -> None:
    vocab = CharVocab.from_text(corpus)
    copy = CharVocab.from_dict(json.loads(json.dumps(vocab.to_dict())))
    assert copy == vocab
    assert hash(copy) == hash(vocab)
    assert copy != CharVocab.from_text(corpus + chr(max(map(ord, corpus + MASK)) + 1))


def test_unknown_character_is_named_with_its_code_point() -> None:
    with pytest.raises(InputError) as error:
        CharVocab.from_text("Strase").encode("Straße")
    assert str(error.value) == "'ß' U+00DF is not in the vocabulary"


@pytest.mark.parametrize("reserved", ["\u25a1", "\u2047"])
def test_reserved_character_in_the_corpus_is_refused(reserved: str) -> None:
    with pytest.raises(InputError, match=f"U\\+{ord(reserved):04X} is reserved"):
        CharVocab.from_text(f"a{reserved}b")


@pytest.mark.parametrize(
    "symbols", [[], [PAD], [MASK, PAD], ["a", "b"], [PAD, MASK, "a", "a"], [PAD, MASK, "ab"], [PAD, MASK, ""]]
)
def test_symbols_that_are_no_vocabulary_are_refused(symbols: list[str]) -> None:
    with pytest.raises(InputError, match="vocabulary"):
        CharVocab(symbols)


@pytest.mark.parametrize("state", [{}, {"symbols": None}, {"symbols": "□⁇a"}, {"symbols": [PAD, MASK, 3]}])
def test_state_of_another_form_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(InputError, match="'symbols'"):
        CharVocab.from_dict(state)
