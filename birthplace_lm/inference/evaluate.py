"""Evaluate a trained model: write its predictions and compute its scores."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.inference.decoding import answer_questions, question_prompt
from birthplace_lm.inference.knowledge import PlacePrior, log_probabilities
from birthplace_lm.inference.scores import score
from birthplace_lm.models.gpt import GPT
from birthplace_lm.runs import signals
from birthplace_lm.runs.atomic_files import atomic_write_text
from birthplace_lm.runs.metrics import Score


@dataclass(frozen=True)
class Evaluation:
    """What a trained model can answer.

    Attributes:
        scores: of every split with gold places, and of the `baseline`, which always gives the most frequent
            train answer.
        seconds: that answering dev took.
        surprisal: mean -log2 P(gold place | question) of the dev questions.
        prior_surprisal: mean -log2 of the smoothed frequency of their places in train.
    """

    scores: dict[str, Score]
    seconds: float
    surprisal: float
    prior_surprisal: float


def evaluate(model: GPT, corpus: Corpus, run: Path, device: str) -> Evaluation:
    """Answer all questions and write `predictions/SPLIT.txt`, one answer per line.

    Args:
        run: the run directory.
        device: that computes the answers, such as "cpu" or "cuda:0".

    Raises:
        Interrupted: a signal arrived.
    """
    model.eval().to(device)
    splits = {
        "dev": corpus.dev.rows,
        "test": corpus.test.rows if corpus.test else [],
        "holdout": corpus.holdout,
    }
    scores: dict[str, Score] = {}
    seconds = {}
    for split, rows in splits.items():
        signals.raise_if_signalled("during the evaluation")
        began = time.perf_counter()
        scored = _answer_all(model, corpus, rows, run / "predictions" / f"{split}.txt") if rows else None
        seconds[split] = time.perf_counter() - began
        if scored is not None:
            scores[split] = scored
    golds = [row.place or "" for row in corpus.dev.rows]
    scores["baseline"] = score([corpus.majority] * len(golds), golds)
    prior = PlacePrior.of(corpus)
    prompts = [question_prompt(model, corpus.vocab, row.question) for row in corpus.dev.rows]
    log_p = log_probabilities(model, corpus.vocab, prompts, golds)
    return Evaluation(
        scores,
        seconds["dev"],
        surprisal=-log_p.mean().item() / math.log(2),
        prior_surprisal=sum(map(prior.bits, golds)) / len(golds),
    )


def _answer_all(model: GPT, corpus: Corpus, rows: list[Question], file: Path) -> Score | None:
    """Write the predictions; score them if all gold places are available."""
    answers = answer_questions(model, corpus.vocab, [row.question for row in rows])
    file.parent.mkdir(exist_ok=True)
    atomic_write_text(file, "".join(a.line + "\n" for a in answers))
    places = [row.place for row in rows]
    if None in places:
        return None
    return score([a.text for a in answers], [place or "" for place in places])
