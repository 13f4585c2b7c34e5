"""What a run knows: where answers come from, the whole study of a run, and its page."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_command
from program import curves
from stage import run as run_pipeline

from birthplace_lm.analysis.knowledge import origin
from birthplace_lm.analysis.knowledge import study as study_module
from birthplace_lm.analysis.knowledge.confidences import agreement, bits_intervals, pool
from birthplace_lm.analysis.knowledge.page import invented_table, reliability_figure, tables_of, write_page
from birthplace_lm.analysis.knowledge.result import Knowledge
from birthplace_lm.analysis.knowledge.study import study, study_model
from birthplace_lm.config.compose import compose
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.prompt_format import MaskedPrompt, own_lines
from birthplace_lm.errors import CheckpointError, InputError
from birthplace_lm.inference.decoding import Answer
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.models.build import build_model

LINE = "Ada Bo. Ada Bo was born in Leeds, West Yorkshire, England, and moved to Rome ."


def test_where_an_answer_comes_from() -> None:
    assert origin.origin("Leeds", "Ada Bo", [LINE], {"Paris"}) == origin.RETRIEVED
    assert origin.origin("Rom", "Ada Bo", [LINE], {"Paris"}) == origin.MADE_UP  # not a word of the line
    assert origin.origin("Paris", "Ada Bo", [LINE], {"Paris"}) == origin.OTHER_PLACE
    assert origin.origin("", "Ada Bo", [LINE], {"Paris"}) == origin.MADE_UP
    assert origin.origin("Rome", "Ada Rome", ["Ada Rome. Born in Oslo ."], {"Rome"}) == origin.OTHER_PLACE


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Leeds", "Leeds", True),
        ("Leeds", "England", True),  # one name in between
        ("England", "Leeds", True),
        ("West Yorkshire", "Leeds", True),
        ("Rome", "Leeds", False),
        ("Paris", "Leeds", False),
        ("", "Leeds", False),
    ],
)
def test_right_in_some_sense(answer: str, gold: str, expected: bool) -> None:
    assert origin.is_right_in_some_sense(answer, gold, [LINE]) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Viena", "Vienna", True),
        ("Vienna", "Vienna", False),
        ("Siena", "Vienna", False),  # a place, though a similar one
        ("Sienna", "Vienna", False),  # nearer to that
        ("Oslooo", "Oslo", True),  # a place that train does not have
        ("Oslo", "Vienna", False),
        ("", "Vienna", False),
    ],
)
def test_misspelled(answer: str, gold: str, expected: bool) -> None:
    assert origin.is_misspelled(answer, gold, {"Siena", "Vienna"}) == expected


def test_facts_about_a_line() -> None:
    assert origin.fact_position("Rome", "Ada Bo", [LINE]) == LINE.index("Rome")
    assert origin.fact_position("Rom", "Ada Bo", [LINE]) is None
    assert origin.fact_position("Rome", "Ada Romeo", ["Ada Romeo. Born in Rome ."]) == 19
    assert origin.repetitions("Ada Bo", [LINE]) == 2
    assert origin.repetitions("Ada Bo", [LINE, "Ada Bo. Bo .", LINE]) == 2  # copies do not count
    assert origin.repetitions("Ada Bo", []) == 0
    assert origin.name_parts("Ada Maria Bo") == ["Ada", "Bo"]
    assert origin.name_parts("Ada") == []


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    config = compose()
    return read_corpus(config.data, config.model.block_size)


def test_every_line_of_the_embedded_corpus_has_its_person(corpus: Corpus) -> None:
    lines = own_lines(corpus.documents.training_lines)
    for row in corpus.dev.rows:
        name = corpus.question.name_in(row.question)
        assert name is not None
        assert origin.fact_position(row.place or "", name, lines[name]) is not None, row


@pytest.fixture(scope="module")
def base(corpus: Corpus) -> Knowledge:
    """Of an untrained model; the tests replace its answers."""
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny"]).model, len(corpus.vocab))
    return study_model("a", TrainedModel(model, corpus.vocab, corpus.question), corpus, MaskedPrompt(10))


def test_an_untrained_model_knows_nothing(base: Knowledge) -> None:
    assert base.exact_match == 0
    assert base.bits.extractable < 0  # much worse than the prior
    assert base.bits.stored is not None
    assert base.bits.stored < 0
    assert all(math.isnan(signal.auroc) for signal in base.signals.values())
    assert len(base.people) == 140
    assert base.threshold.coverage == 0


@pytest.fixture
def finished(configure: Any, tmp_path: Path) -> Path:
    """A run that has learned its few people by heart."""
    config = configure(
        f"run_dir={tmp_path / 'run'}",
        "model.n_embd=64",
        "stages.pretrain.max_epochs=60",
        "stages.finetune.max_epochs=2",
        "stages.pretrain.dataset.spans.answer_probability=1.0",
        "stages.pretrain.dataset.spans.context_exponent=30.0",
    )
    run_pipeline(config)
    return tmp_path / "run"


def test_a_run(finished: Path, people: Path, tmp_path: Path, capsys: Any) -> None:
    knowledge = study(finished)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert knowledge.exact_match == metrics["dev"]["exact_match"]
    answers = (finished / "predictions" / "dev.txt").read_text().splitlines()
    assert [person.answer for person in knowledge.people] == answers
    assert metrics["bits"] == pytest.approx(knowledge.bits.extractable, abs=1e-4)
    drawn = {stage: curves(finished / stage) for stage in ("pretrain", "finetune")}
    assert drawn["finetune"]["finetune/bits/extractable"][-1][1] == pytest.approx(metrics["bits"], abs=1e-3)
    assert drawn["pretrain"]["pretrain/bits/stored"][-1][1] > drawn["pretrain"]["pretrain/bits/stored"][0][1]
    for _, value in drawn["pretrain"]["pretrain/bits/prior"]:
        assert value == pytest.approx(knowledge.bits.prior, abs=1e-4)
    assert len(knowledge.setting) == 64
    bits = knowledge.bits
    assert bits.stored is not None
    assert bits.stored > 0
    assert bits.stored <= bits.prior
    assert bits.extractable <= bits.prior

    write_page([knowledge, knowledge], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    for title, table in tables_of([knowledge]):
        assert len({len(row) for row in table}) == 1, title

    def not_json(constant: str) -> None:
        raise AssertionError(constant)

    assert run_command("knowledge", finished, "--json") == 0
    (content,) = json.loads(capsys.readouterr().out, parse_constant=not_json)
    assert content["exact_match"] == knowledge.exact_match
    assert run_command("knowledge", finished) == 0
    assert "Bits about the answer" in capsys.readouterr().out
    assert run_command("knowledge", finished, finished) == 2
    assert "named twice" in capsys.readouterr().err

    assert run_command("export", finished, tmp_path / "model") == 0
    exported = replace_root(tmp_path / "model", people)
    assert exported.exact_match == knowledge.exact_match
    assert exported.bits.stored is None  # the weights after pretraining stayed behind

    corpus_file = people / "corpus.txt"
    text = corpus_file.read_text()
    try:
        corpus_file.write_text(text.replace(" was ", " is "))
        with pytest.raises(CheckpointError, match="have changed"):
            study(finished)
    finally:
        corpus_file.write_text(text)


def replace_root(export: Path, people: Path) -> Knowledge:
    """Study an export whose data lies in a folder; it does not name one."""
    config = export / "config.json"
    config.write_text(config.read_text().replace('"root": null', f'"root": "{people}"'))
    return study(export)


def test_agreement_counts_the_other_runs(base: Knowledge) -> None:
    people = [replace(p, answer=p.gold if i % 2 else f"wrong {i}") for i, p in enumerate(base.people)]
    one: Knowledge = replace(base, people=people)
    other = replace(base, run="b", weights="b", people=[replace(p, answer=p.gold) for p in base.people])
    third = replace(one, run="c", setting="another")
    agreed = agreement([one, other, third])
    assert {*agreed} == {"a", "b"}
    assert agreed["a"].auroc == 1.0
    assert agreement([one, other, replace(other, run="copy")]) == agreement([one, other]) | {
        "copy": agreed["b"]
    }
    assert agreement([one, replace(one, run="copy")]) == {}


def test_tenths_are_equally_many_people(base: Knowledge) -> None:
    """Bug: the surest answer of 101 was a dot of its own."""
    people = [
        replace(p, log_p_answer=math.log((i + 1) / 101), answer=p.gold if i < 100 else "wrong")
        for i, p in enumerate(base.people[:101])
    ]
    (axes,) = reliability_figure([replace(base, people=people)]).axes
    right = axes.lines[-1].get_ydata()
    assert len(right) == 10
    assert right[-1] == pytest.approx(90)
    (axes,) = reliability_figure([replace(base, people=people[:3])]).axes
    assert len(axes.lines[-1].get_ydata()) == 3


def test_intervals_of_bits_are_those_of_means(base: Knowledge) -> None:
    """Against the normal approximation, where it holds; the gap against its first-order variance."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(4.0, 1.0, (400, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])  # correlated, means 4 and 5.6
    people = [
        replace(
            base.people[0],
            prior_bits=5.0,
            log_p_gold=(extractable - 5) * math.log(2),
            log_p_gold_text=(stored - 5) * math.log(2),
        )
        for extractable, stored in drawn
    ]
    found = bits_intervals(people)
    mean, z = drawn.mean(0), 1.96 / math.sqrt(len(drawn))
    ratio = mean[0] / mean[1]
    spread = (drawn[:, 0] - ratio * drawn[:, 1]).std() / mean[1]
    for name, middle, deviation in (
        ("extractable", mean[0], drawn[:, 0].std()),
        ("stored", mean[1], drawn[:, 1].std()),
        ("gap", 1 - ratio, spread),
    ):
        expected = (middle - z * deviation, middle + z * deviation)
        assert found[name] == pytest.approx(expected, abs=0.15 * z * deviation), name
    twice = bits_intervals([person for person in people for _ in range(2)], answers=2)
    assert twice == {name: pytest.approx(limits) for name, limits in found.items()}
    impossible = [replace(people[0], log_p_gold=-math.inf), *people]
    assert "extractable" not in bits_intervals(impossible)
    assert {*bits_intervals([replace(p, log_p_gold_text=None) for p in people])} == {"extractable"}


def test_answers_are_candidates(corpus: Corpus, monkeypatch: Any) -> None:
    """Bug: an answer that is no place of train had a margin of about 0, however likely it was."""
    torch.manual_seed(0)
    model = build_model(compose(["model=tiny"]).model, len(corpus.vocab))
    answers = [Answer(f"Answer {i % 3}", -0.1) for i in range(len(corpus.dev.rows))]
    asked = []

    def scores(model: Any, vocab: Any, prompts: Any, texts: list[str], top: Any = None) -> torch.Tensor:
        asked.append(texts)
        likely = torch.tensor([math.log(0.9) if text == "Answer 1" else -math.inf for text in texts])
        return likely.expand(len(prompts), -1)

    monkeypatch.setattr(study_module, "answer_questions", lambda *_: answers)
    monkeypatch.setattr(study_module, "answer_log_probabilities", scores)
    monkeypatch.setattr(study_module, "ask_about_invented", lambda *_: None)
    found = study_model("a", TrainedModel(model, corpus.vocab, corpus.question), corpus, None)
    places = {row.place for row in corpus.train.rows}
    assert {*asked[0]} == places | {f"Answer {i}" for i in range(3)}
    assert found.candidates == len(places) + 3
    assert found.elsewhere == pytest.approx(0.1)
    assert all(person.margin == pytest.approx(0.9) for person in found.people)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert all(person.entropy == pytest.approx(entropy) for person in found.people)


def test_seeds_are_pooled_by_person(base: Knowledge) -> None:
    """The same run twice has no more information than once: only counts of answers double."""
    half = [replace(p, answer=p.gold if i % 3 else p.answer) for i, p in enumerate(base.people)]
    twice = pool([replace(base, people=half), replace(base, people=half, weights="b")])
    once = pool([replace(base, people=half)])
    assert len(twice.people) == 2 * len(once.people) == 280
    assert (twice.people_count, twice.exact_match) == (140, once.exact_match)
    assert twice.bits == once.bits
    assert {*twice.signals} - {*once.signals} == {"agreement with the other seeds"}
    for name, expected in once.signals.items():
        signal = twice.signals[name]

        assert (signal.auroc, signal.low, signal.high) == pytest.approx(
            (expected.auroc, expected.low, expected.high)
        )
    agreed = twice.signals["agreement with the other seeds"]
    assert agreed.auroc == 0.5  # all agree, whether right or wrong
    assert twice.calibration_interval == pytest.approx(once.calibration_interval)
    assert twice.threshold.score == once.threshold.score
    exact = dict(tables_of([twice]))["Bits about the answer, mean per person (95 % interval)"][2]
    assert (
        exact[1:] == dict(tables_of([once]))["Bits about the answer, mean per person (95 % interval)"][2][1:]
    )
    assert twice.invented is not None
    assert once.invented is not None
    assert twice.invented.places == once.invented.places
    assert invented_table([twice])[1] == invented_table([once])[1]  # how many people
    with pytest.raises(InputError, match="different people"):
        pool([base, replace(base, people=base.people[1:])])
    with pytest.raises(InputError, match="differ in more than the seed"):
        pool([base, replace(base, setting="another")])
    with pytest.raises(InputError, match="a and copy have equal weights"):
        pool([base, replace(base, run="copy")])
