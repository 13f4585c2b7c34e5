"""Invented people: their names, similarity of names, and what chance would give."""

import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from birthplace_lm.analysis.knowledge import invented
from birthplace_lm.analysis.knowledge.invented import (
    ask_about_invented,
    edit_distances,
    invent_names,
    name_states,
    people_read_about,
)
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.inference.decoding import Answer
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    config = compose()
    return read_corpus(config.data, config.model.block_size)


def untrained(corpus: Corpus, *overrides: str) -> TrainedModel:
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny", *overrides]).model, len(corpus.vocab))
    return TrainedModel(model, corpus.vocab, corpus.question)


def test_edit_distance_is_the_fewest_changes_of_a_character() -> None:
    def distance(a: str, b: str) -> int:
        """By its recursive definition."""
        if not a or not b:
            return len(a) + len(b)
        replaced = distance(a[1:], b[1:]) + (a[0] != b[0])
        return min(replaced, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    draw = random.Random(0)
    words = ["".join(draw.choice("abé") for _ in range(draw.randrange(1, 6))) for _ in range(12)]
    expected = [[distance(a, b) for b in words[6:]] for a in words[:6]]
    assert edit_distances(words[:6], words[6:]).tolist() == expected


def test_invented_names_are_new_combinations(corpus: Corpus) -> None:
    names = invent_names(corpus, 500)
    assert len(set(names)) == 500
    assert names == invent_names(corpus, 500)
    for name in names:
        first, last = name.split()
        assert name not in corpus.documents.text
        assert first in corpus.documents.text
        assert last in corpus.documents.text


@pytest.mark.parametrize("attention", ["vanilla", "perceiver", "nope"])
def test_states_do_not_depend_on_the_batch(corpus: Corpus, attention: str) -> None:
    trained = untrained(corpus, f"attention={attention}", "model.n_layer=3")
    names = ["Ada Bo", "Padma Fortescue", "Kwame Ahlgren-Pham"]
    together = name_states(trained, names)
    assert together.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    for name, state in zip(names, together, strict=True):
        torch.testing.assert_close(name_states(trained, [name])[0], state, atol=1e-5, rtol=0)


def test_the_state_of_a_name_is_of_characters(corpus: Corpus) -> None:
    """Bug: with as many latent vectors as positions it was that of a latent vector."""
    trained = untrained(corpus, "attention=perceiver", "model.n_layer=3", "model.block.latents=64")
    model = trained.model
    ids, _ = trained.vocab.encode_known(f"{corpus.question.prefix}Ada Bo")
    with torch.no_grad():
        x = embedding = model.embed(torch.tensor([ids]))
        for block in model.blocks:
            x = block(x, None, embedding)
    expected = torch.nn.functional.normalize(x[0, -1], dim=0)
    torch.testing.assert_close(name_states(trained, ["Ada Bo"])[0], expected, atol=1e-5, rtol=0)


def test_an_invented_person_is_nobody_without_a_middle_name(tmp_path: Path) -> None:
    """Bug: Ada Mary Bo and Eve Jo Cy made an Ada Bo."""
    names = [f"{first} {middle} {last}" for first in "ABCD" for last in "WXYZ" for middle in ("Mo",)]
    lines = [f"{name}. Born in Rome ." for name in names]
    (tmp_path / "corpus.txt").write_text("".join(f"{line}\n" for line in lines))
    questions = [f"Where was {name} born?\tRome\n" for name in names]
    for split, rows in (("train", questions[:8]), ("dev", questions[8:])):
        (tmp_path / f"{split}.tsv").write_text("".join(rows))
    config = compose([f"data.root={tmp_path}", "data.test=null"])
    assert invent_names(read_corpus(config.data, 64), 10) == []


def test_one_answer_for_all_is_as_similar_as_chance(corpus: Corpus, monkeypatch: Any) -> None:
    """Whoever always says the most frequent place is right about a similar person by chance alone."""
    monkeypatch.setattr(
        invented, "answer_questions", lambda m, v, q: [Answer(corpus.majority, -1.0)] * len(q)
    )
    result = ask_about_invented(untrained(corpus), corpus, [0.0, -2.0], 1000)
    assert result is not None
    rows = [*corpus.train.rows, *corpus.dev.rows, *(corpus.test.rows if corpus.test else [])]
    share = Counter(row.place for row in rows)[corpus.majority] / len(rows)
    assert result.places == 1
    assert result.auroc == 0.5
    for kind, similarity in result.similar.items():
        assert similarity.chance == pytest.approx(share)
        standard_error = np.sqrt(share * (1 - share) / min(similarity.total, 200))  # few distinct neighbours
        assert abs(similarity.matches / similarity.total - share) < 4 * standard_error, kind


def test_answers_of_the_nearest_are_found(corpus: Corpus, monkeypatch: Any) -> None:
    """Whoever answers with the place of the person with the same surname is found out."""
    places: dict[str, str] = {}
    for row in (*corpus.train.rows, *corpus.dev.rows):
        name = corpus.question.name_in(row.question) or ""
        places.setdefault(name.split()[-1], row.place or "")

    def answer(model: Any, vocab: Any, questions: list[str]) -> list[Answer]:
        surnames = [(corpus.question.name_in(question) or "").split()[-1] for question in questions]
        return [Answer(places.get(surname, "nowhere"), 0.0) for surname in surnames]

    monkeypatch.setattr(invented, "answer_questions", answer)
    result = ask_about_invented(untrained(corpus), corpus, [0.0], 300)
    assert result is not None
    similarity = result.similar["a person with the same surname"]
    share = similarity.matches / similarity.total
    assert 4 * similarity.chance < share <= 1  # several people share a surname
    assert result.similar["nearest name by edit distance"].chance < 0.1


def test_people_whose_lines_are_left_out_are_not_compared(corpus: Corpus) -> None:
    """Everybody who is read about: train, dev and test of the embedded corpus."""
    assert corpus.test is not None
    splits = (corpus.train.rows, corpus.dev.rows, corpus.test.rows)
    everybody = {corpus.question.name_in(row.question) for rows in splits for row in rows}
    assert {name for name, _ in people_read_about(corpus)} == everybody
    for split, left in (("dev", splits[::2]), ("train", splits)):  # train people are read in questions
        config = compose([f"data.exclude={split}"])
        others = people_read_about(read_corpus(config.data, config.model.block_size))
        assert len(others) == sum(map(len, left))


def test_nobody_has_a_similar_name(tmp_path: Path) -> None:
    """Bug: a warning of numpy about the mean of nothing."""
    (tmp_path / "train.tsv").write_text("".join(f"Where was P{i} born?\tRome\n" for i in range(9)))
    names = [f"A{i} B{j}" for i in range(12) for j in range(12) if (i + j) % 2]
    (tmp_path / "dev.tsv").write_text("".join(f"Where was {name} born?\tRome\n" for name in names))
    lines = [f"{name}. Born in Rome ." for name in (*names, *(f"P{i}" for i in range(9)))]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    corpus = read_corpus(compose([f"data.root={tmp_path}", "data.test=null", "data.exclude=dev"]).data, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ask_about_invented(untrained(corpus), corpus, [0.0] * len(names))
    assert result is not None
    assert [s.chance for s in result.similar.values() if not s.total] == [0.0, 0.0]


def test_a_corpus_of_single_words_has_nobody_to_invent(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(
            "".join(f"Where was P{i}{split} born?\tRome\n" for i in range(9))
        )
    lines = [f"P{i}{split}. Born in Rome ." for i in range(9) for split in ("train", "dev")]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    config = compose([f"data.root={tmp_path}", "data.test=null"])
    corpus = read_corpus(config.data, 128)
    assert ask_about_invented(untrained(corpus), corpus, []) is None
