"""The titles of documents, as a corpus without questions would tell them."""

from collections.abc import Sequence

from birthplace_lm.data.corpora.consistency import title_of


def titles(documents: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(title_of, documents))
