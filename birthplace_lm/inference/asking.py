"""What surrounds an answer: warnings before a model is asked, the likeliest places, and abstention."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.people import closest_people
from birthplace_lm.data.questions import QuestionTemplate, normalise
from birthplace_lm.errors import BirthplaceError
from birthplace_lm.inference.closed_answers import answer_log_probabilities
from birthplace_lm.inference.confidence import Threshold, choose_threshold
from birthplace_lm.inference.decoding import question_prompt
from birthplace_lm.inference.language_model import TrainedModel
from birthplace_lm.inference.run_corpus import corpus_of_run
from birthplace_lm.runs.directory import read_status


def warnings_about(run: Path, config: DictConfig, names: Sequence[str]) -> list[str]:
    """What makes the answers of a run doubtful.

    Names are compared with the corpus only where its files are still those that the run was trained on.

    Args:
        run, config: a run directory or an export, and its configuration.
        names: as they were typed.
    """
    warnings = unfinished_warnings(run)
    corpus = corpus_of(run, config)
    question = QuestionTemplate.parse(config.data.question)
    for name in dict.fromkeys(names):
        warnings += _about_name(normalise(name), question, corpus)
    return warnings


def unfinished_warnings(run: Path) -> list[str]:
    """A warning if the run is not finished; an export is."""
    status = read_status(run)
    if (state := status.get("state", "done")) == "done":
        return []
    return [f"{run}: {state} in {status.get('stage')}, not finished; its command continues it"]


def corpus_of(run: Path, config: DictConfig) -> Corpus | None:
    """The corpus of a run; None if its files are not there, or no longer those that it was trained on."""
    with suppress(BirthplaceError):  # the files have moved, or the model comes from another machine
        return corpus_of_run(run, config)
    return None


def likeliest_places(
    trained: TrainedModel, corpus: Corpus, questions: Sequence[str], count: int = 3
) -> list[list[tuple[str, float]]]:
    """For each question the train answers with the highest probabilities, the likeliest first."""
    places = sorted({row.place for row in corpus.train.rows if row.place})
    prompts = [question_prompt(trained.model, trained.vocab, normalise(question)) for question in questions]
    scores = answer_log_probabilities(trained.model, trained.vocab, prompts, places, top=count)
    best = scores.topk(min(count, len(places)), 1)
    return [
        [(places[j], math.exp(p)) for j, p in zip(row, log_p, strict=True)]
        for row, log_p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def abstention_threshold(trained: TrainedModel, corpus: Corpus, precision: float) -> Threshold:
    """Choose the log-probability (nats) above which answers reach `precision`, on questions not trained on.

    These are the held-out train questions if the run has some, the dev questions otherwise; those that train
    repeats are left out.
    """
    trained_on = {row.question for row in corpus.train.rows}
    rows = [r for r in corpus.holdout or corpus.dev.rows if r.place and r.question not in trained_on]
    answers = trained.answer_questions([row.question for row in rows])
    return choose_threshold(
        [answer.log_probability for answer in answers],
        [answer.text == row.place for answer, row in zip(answers, rows, strict=True)],
        precision,
    )


def _about_name(typed: str, question: QuestionTemplate, corpus: Corpus | None) -> list[str]:
    name = question.name_or_text(typed)
    if name != typed:
        return [f"{typed}: a whole question; a name is enough", *_about_name(name, question, corpus)]
    if name.endswith("?"):
        return [f"{name}: a question that the model was not trained on; give the full name alone"]
    closest = None if corpus is None else closest_people(name, corpus)
    if closest is None:
        return []
    hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
    return [f"{name}: the corpus has nobody of this name{hint}"]
