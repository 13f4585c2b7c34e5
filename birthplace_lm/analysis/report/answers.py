"""The answers of finished runs on dev, compared with the places of the run's corpus."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

from birthplace_lm.analysis.report.collect import Run
from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.corpora.qa_files import Question
from birthplace_lm.errors import BirthplaceError
from birthplace_lm.inference.run_corpus import corpus_of_run

# What reading the answers of a run raises if its corpus, its predictions or its configuration do not fit.
UNREADABLE = (BirthplaceError, OSError, ValueError, KeyError, TypeError, AttributeError)


def answers_on_dev(run: Run) -> list[tuple[Question, str]]:
    """The questions of dev with their answers, in the order of the file.

    Raises:
        UNREADABLE: the corpus or the predictions cannot be read, have changed, or do not fit the run.
    """
    rows = _corpus(run).dev.rows
    answers = (run.path / "predictions" / "dev.txt").read_text(encoding="utf-8").split("\n")[:-1]
    if len(answers) != len(rows):
        raise ValueError(f"{run.path.name} has {len(answers)} predictions for {len(rows)} questions")
    return [*zip(rows, answers, strict=True)]


def categorize(run: Run) -> tuple[Counter[str], list[tuple[str, str, str]]]:
    """Count the answers on dev by category. Also returns the wrong ones with question and gold answer.

    Raises:
        UNREADABLE: as `answers_on_dev`.
    """
    corpus = _corpus(run)
    places = {row.place for row in corpus.train.rows}
    counts: Counter[str] = Counter()
    errors = []
    for row, answer in answers_on_dev(run):
        if answer == row.place:
            counts["right"] += 1
            continue
        errors.append((row.question, answer, row.place or ""))
        if answer in places:
            counts["the majority answer" if answer == corpus.majority else "a wrong train answer"] += 1
        else:
            counts["not a train answer" if answer.strip() else "an empty text"] += 1
    return counts, errors


def _corpus(run: Run) -> Corpus:
    """The corpus of a run, by its configuration as it stands: that may name classes of a plugin."""

    def section(name: str) -> dict[str, Any]:
        keys = [key for key in run.config if key.startswith(f"{name}.")]
        return {key.partition(".")[2]: run.config[key] for key in keys}

    config: Any = SimpleNamespace(
        data=SimpleNamespace(**section("data")),
        model=SimpleNamespace(**section("model")),
        inputs=section("inputs"),
    )
    return corpus_of_run(run.path, config)
