"""Warnings before a model is asked: an unfinished run, unknown people, whole questions."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from birthplace_lm.config.compose import load_saved
from birthplace_lm.data.corpora.corpus import Corpus, read_corpus
from birthplace_lm.data.corpora.people import closest_people
from birthplace_lm.data.questions import QuestionTemplate, normalise
from birthplace_lm.errors import BirthplaceError
from birthplace_lm.runs.directory import RunDirectory


def warnings_about(run: Path, names: Sequence[str], plugins: Collection[str] = ()) -> list[str]:
    """What makes the answers of a run doubtful.

    Names are compared with the corpus only where its files are still those that the run was trained on.

    Args:
        run: a run directory or an export.
        names: as they were typed.
        plugins: packages whose classes its configuration may name.

    Raises:
        InputError: the config.yaml of the run cannot be read.
    """
    config = load_saved(run / "config.yaml", plugins)
    status = RunDirectory(run, config).status
    warnings = []
    if (state := status.get("state", "done")) != "done":
        warnings.append(f"{run}: {state} in {status.get('stage')}, not finished; its command continues it")
    corpus = None
    with suppress(BirthplaceError):  # the files have moved, or the model comes from another machine
        corpus = read_corpus(config.data, config.model.block_size)
    if corpus is not None and corpus.sha256.get("corpus") != config.inputs.get("corpus"):
        corpus = None
    question = QuestionTemplate.parse(config.data.question)
    for name in dict.fromkeys(names):
        warnings += _about_name(normalise(name), question, corpus)
    return warnings


def _about_name(typed: str, question: QuestionTemplate, corpus: Corpus | None) -> list[str]:
    name = question.name_in(typed) or typed
    if name != typed:
        return [f"{typed}: a whole question; a name is enough", *_about_name(name, question, corpus)]
    if name.endswith("?"):
        return [f"{name}: a question that the model was not trained on; give the full name alone"]
    closest = None if corpus is None else closest_people(name, corpus)
    if closest is None:
        return []
    hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
    return [f"{name}: the corpus has nobody of this name{hint}"]
