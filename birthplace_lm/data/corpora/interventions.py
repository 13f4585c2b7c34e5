"""Changes of a corpus that show what its lines are worth: people left out, places replaced."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from birthplace_lm.data.corpora.consistency import owner
from birthplace_lm.data.corpora.qa_files import Documents, Questions, read_field
from birthplace_lm.data.corpora.text_file import TextFile
from birthplace_lm.data.questions import QuestionTemplate
from birthplace_lm.errors import InputError


def names_of(questions: Questions, template: QuestionTemplate) -> set[str]:
    """The people that questions ask about."""
    return {template.name_or_text(row.question) for row in questions.rows}


def exclude_people(documents: Documents, names: Collection[str]) -> tuple[Documents, list[str]]:
    """The documents without the lines of these people: those that begin with a name and a full stop.

    Returns:
        The remaining documents, and a warning if some people have no such line.

    Raises:
        InputError: no line would be left, or no line is excluded.
    """
    owners = [owner(line, names) for line in documents.training_lines]
    lines = [line for line, person in zip(documents.lines, owners, strict=True) if person is None]
    if not lines:
        raise InputError("data.exclude: leaves no line of the corpus; exclude another split")
    excluded = len(owners) - len(lines)
    if not excluded:
        raise InputError(
            f"data.exclude: excludes no line: none of {documents.path} begins with one of the {len(names)}"
            " names of the split and '. '; correct the names, or exclude another split"
        )
    absent = len({*names} - {*owners})
    edited = replace(
        documents,
        lines=lines,
        text="".join(f"{line}\n" for line in lines),
        notes=[*documents.notes, f"{documents.path}: {excluded} lines excluded"],
    )
    warning = f"data.exclude: {absent} of {len(names)} names begin no line of {documents.path}"
    return edited, [warning] if absent else []


def read_replacements(path: Path) -> tuple[dict[str, tuple[str, int]], TextFile]:
    """New places and their line numbers by name, from lines of `NAME<TAB>PLACE`; and the file they are from.

    Raises:
        InputError: the file cannot be read, or a line has another form.
    """
    file = TextFile(path, "data.replace")
    replacements: dict[str, tuple[str, int]] = {}
    for number, raw in file.lines():
        fields = [read_field(file, field, number) for field in raw.split("\t")]
        if fields == [""]:
            continue
        if len(fields) != 2 or not all(fields):
            raise InputError(f"{path}:{number}: expected 'NAME<TAB>PLACE'")
        if fields[0] in replacements:
            raise InputError(f"{path}:{number}: {fields[0]} is already on line {replacements[fields[0]][1]}")
        replacements[fields[0]] = fields[1], number
    if not replacements:
        raise InputError(f"data.replace={path}: 0 replacements; give one 'NAME<TAB>PLACE' per line")
    return replacements, file


def replace_places(
    documents: Documents,
    files: Collection[Questions],
    template: QuestionTemplate,
    replacements: Mapping[str, tuple[str, int]],
    path: Path,
) -> tuple[Documents, list[Questions]]:
    """A counterfactual corpus: the lines and the answers of some people name other places.

    The name in front of a line, and wherever else it stands in full, stays.

    Raises:
        InputError: a name has no question with an answer, or several answers, or its line does not have it.
    """
    golds: dict[str, str] = {}
    for row in (row for questions in files for row in questions.rows):
        name = template.name_or_text(row.question)
        if name in replacements and row.place and golds.setdefault(name, row.place) != row.place:
            number = replacements[name][1]
            raise InputError(f"{path}:{number}: {name} has two answers, {golds[name]} and {row.place}")
    lines = [*documents.lines]
    changed: set[str] = set()
    for i, line in enumerate(documents.training_lines):
        person = owner(line, replacements)
        if person is not None and person in golds:
            parts = _around_place(line[len(person) :], person, golds[person])
            lines[i] = person + replacements[person][0].join(parts)
            changed |= {person} if len(parts) > 1 else set()
    for name, (_, number) in replacements.items():
        if name not in golds:
            raise InputError(f"{path}:{number}: no question with an answer is about {name}")
        if name not in changed:
            raise InputError(f"{path}:{number}: the line of {name} does not have {golds[name]}")
    edited = replace(
        documents,
        lines=lines,
        text="".join(f"{line}\n" for line in lines),
        notes=[*documents.notes, f"{documents.path}: places of {len(changed)} people replaced"],
    )
    return edited, [_with_answers(questions, template, replacements) for questions in files]


def _around_place(text: str, name: str, place: str) -> list[str]:
    """The text split at a place, as whole words that are no part of the full name."""
    ends, parts = 0, []
    for match in re.finditer(rf"(?<!\w)(?:{re.escape(name)}|{re.escape(place)})(?!\w)", text):
        if match[0] == place:
            parts.append(text[ends : match.start()])
            ends = match.end()
    return [*parts, text[ends:]]


def _with_answers(
    questions: Questions, template: QuestionTemplate, replacements: Mapping[str, tuple[str, int]]
) -> Questions:
    rows = []
    for row in questions.rows:
        name = template.name_or_text(row.question)
        rows.append(replace(row, place=replacements[name][0]) if name in replacements else row)
    return replace(questions, rows=rows)
