"""The people of a corpus, and those whose names are closest to a typed one."""

import difflib
import re

from birthplace_lm.data.corpora.corpus import Corpus
from birthplace_lm.data.prompt_format import own_lines


def closest_people(name: str, corpus: Corpus, count: int = 3) -> list[str] | None:
    """Names that resemble one which the corpus does not have, the closest first; None if it has the name.

    A corpus has the names of its questions, the beginnings of its lines, and every full name in its text.
    """
    name = corpus.vocab.replace_unknown(name)
    lines = corpus.documents.training_lines
    names = corpus.names | own_lines(lines, corpus.names).keys()
    within_a_line = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", "\n".join(lines))
    if name in names or (" " in name and within_a_line):
        return None
    spellings = {other.casefold(): other for other in sorted(names)}
    typed = name.casefold()
    parts = [other for other in spellings if f" {typed} " in f" {other} "]
    close = difflib.get_close_matches(typed, spellings, n=count, cutoff=0.7)
    return [spellings[other] for other in dict.fromkeys([*close, *sorted(parts, key=len)])][:count]
