"""Measure everything about what a trained model knows that needs no further training."""

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor

from birthplace_lm.analysis.knowledge import origin
from birthplace_lm.analysis.knowledge.confidences import build_knowledge
from birthplace_lm.analysis.knowledge.invented import ask_about_invented
from birthplace_lm.analysis.knowledge.result import Knowledge, Person
from birthplace_lm.analysis.report.collect import short_name
from birthplace_lm.config.compose import load_config
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.prompt_format import MaskedPrompt, PromptFormat, own_lines
from birthplace_lm.errors import InputError
from birthplace_lm.inference.closed_answers import answer_log_probabilities
from birthplace_lm.inference.decoding import answer_questions, question_prompt
from birthplace_lm.inference.knowledge import (
    Bits,
    PlacePrior,
    bits_about,
    log_probabilities,
    recall,
)
from birthplace_lm.inference.language_model import WEIGHTS, TrainedModel
from birthplace_lm.inference.run_corpus import corpus_of_run
from birthplace_lm.inference.weights import weights_sha256
from birthplace_lm.models.float32_products import float32_products
from birthplace_lm.runs.auto_precision import faster_library
from birthplace_lm.runs.identity import config_hash, hashed_config

GUESSABLE_RANK = 3  # as in LAMA-UHN: the gold place among so many likeliest ones for a part of the name


def study(run: Path, plugins: Collection[str] = ()) -> Knowledge:
    """Measure a finished run on its dev questions.

    Args:
        run: a run directory or an export whose data files are still there.
        plugins: packages whose classes its configuration may name.

    Raises:
        CheckpointError: the files of the corpus have changed since.
        InputError: the run, or its corpus, cannot be read.
    """
    config = load_config(run, plugins)
    corpus = corpus_of_run(run, config)
    trained = TrainedModel.from_run(run, plugins)
    pretrain = config.stages.pretrain
    prompt_format = None
    if pretrain.enabled and not (run / WEIGHTS).is_file():  # an export lacks the weights after pretraining
        data_module: Any = get_class(pretrain.dataset._target_)
        prompt_format = data_module.prompt_format_of(pretrain.dataset, corpus)
    name = short_name(run.resolve().name)
    pretrained = TrainedModel.from_run(run, plugins, stage="pretrain") if prompt_format else None
    setting = config_hash({**hashed_config(config), "seed": None})
    label = f"{', '.join(config.labels.values())}, seed {config.seed}"
    with float32_products(faster_library(config.model.n_embd)):
        return study_model(name, trained, corpus, prompt_format, pretrained, setting, label)


def study_model(
    name: str,
    trained: TrainedModel,
    corpus: Corpus,
    prompt_format: PromptFormat | None,
    pretrained: TrainedModel | None = None,
    setting: str = "",
    label: str = "",
) -> Knowledge:
    """Measure a model on the dev questions of a corpus.

    Args:
        name: of the run.
        prompt_format: makes cloze prompts like the text of pretraining; None if that does not state places.
        pretrained: the model after pretraining, which recalls the text; None: `trained`.
        setting, label: see `Knowledge`.

    Raises:
        InputError: the dev questions have no places.
    """
    model, vocab, template = trained.model, trained.vocab, corpus.question
    rows = [row for row in corpus.dev.rows if row.place]
    if not rows:
        raise InputError(f"{name}: its dev questions have no places")
    questions, golds = [row.question for row in rows], [row.place or "" for row in rows]
    names = [template.name_or_text(question) for question in questions]
    prior = PlacePrior.of(corpus)
    places = sorted(prior.counts)

    answers = answer_questions(model, vocab, questions)
    question_prompts = [question_prompt(model, vocab, question) for question in questions]
    candidates = sorted({*places, *(answer.text for answer in answers)})
    began = time.perf_counter()
    log_p = answer_log_probabilities(model, vocab, question_prompts, candidates).double()
    seconds = time.perf_counter() - began
    gold_log_p = log_probabilities(model, vocab, question_prompts, golds).tolist()
    reader = (pretrained or trained).model
    recalled = None if prompt_format is None else recall(reader, vocab, prompt_format, names, golds)
    answer_log_p = None
    if isinstance(prompt_format, MaskedPrompt):  # a line up to the place tells more than the name does
        recalls = recall(model, vocab, prompt_format, names, [answer.text for answer in answers])
        answer_log_p = [-math.inf if one.log_p is None else one.log_p for one in recalls]
    guessable = _guessable(trained, corpus, names, golds, places)
    lines = own_lines(corpus.documents.training_lines, corpus.names)
    top = log_p.exp().topk(min(2, len(candidates)), 1).values
    people = [
        Person(
            name=names[i],
            gold=golds[i],
            answer=answers[i].text,
            log_p_answer=answers[i].log_probability,
            log_p_gold=gold_log_p[i],
            log_p_gold_text=None if recalled is None else recalled[i].log_p,
            prior_bits=prior.bits(golds[i]),
            recalled=None if recalled is None else recalled[i].right,
            entropy=_entropy(log_p[i]),
            margin=float(top[i, 0] - top[i, -1]),
            text_log_p_answer=None if answer_log_p is None else answer_log_p[i],
            origin=origin.origin(answers[i].text, names[i], lines.get(names[i], []), prior.counts),
            lenient=origin.is_right_in_some_sense(answers[i].text, golds[i], lines.get(names[i], [])),
            misspelled=origin.is_misspelled(answers[i].text, golds[i], prior.counts),
            position=origin.fact_position(golds[i], names[i], lines.get(names[i], [])),
            frequency=prior.counts.get(golds[i], 0),
            lines=len(lines.get(names[i], [])),
            repetitions=origin.repetitions(names[i], lines.get(names[i], [])),
            replaced=names[i] in corpus.replaced,
            guessable=guessable[i],
        )
        for i in range(len(rows))
    ]
    bits = Bits(
        prior=sum(map(prior.bits, golds)) / len(golds),
        extractable=bits_about(prior, golds, gold_log_p),
        stored=None if recalled is None else bits_about(prior, golds, [one.log_p for one in recalled]),
    )
    invented = ask_about_invented(trained, corpus, [answer.log_probability for answer in answers])
    return build_knowledge(
        people,
        run=name,
        setting=setting,
        weights=weights_sha256(model),
        label=label,
        bits=bits,
        parameters=model.num_parameters,
        seconds=seconds,
        candidates=len(candidates),
        elsewhere=1 - float(log_p.exp().sum(1).mean()),
        invented=invented,
    )


def _entropy(log_p: Tensor) -> float:
    """Of the probabilities of the candidates and of everything else, nats."""
    p = log_p.exp()
    rest = (1 - p.sum()).clamp(min=0)
    return float(torch.special.entr(p).sum() + torch.special.entr(rest))


def _guessable(
    trained: TrainedModel, corpus: Corpus, names: Sequence[str], golds: Sequence[str], places: Sequence[str]
) -> list[bool]:
    """Whether the gold place is among the likeliest for a part of the name alone, or stands in the name."""
    parts = [(i, part) for i, name in enumerate(names) for part in origin.name_parts(name)]
    result = [gold in name for gold, name in zip(golds, names, strict=True)]
    if not parts:
        return result
    distinct = sorted({part for _, part in parts})
    prompts = [
        question_prompt(trained.model, trained.vocab, corpus.question.about(part)) for part in distinct
    ]
    log_p = answer_log_probabilities(trained.model, trained.vocab, prompts, places)
    best = log_p.topk(min(GUESSABLE_RANK, len(places)), 1).indices.tolist()
    likeliest = {part: {places[j] for j in row} for part, row in zip(distinct, best, strict=True)}
    for i, part in parts:
        result[i] = result[i] or golds[i] in likeliest[part]
    return result
