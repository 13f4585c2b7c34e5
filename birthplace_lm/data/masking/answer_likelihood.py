"""Answer likelihood: which words of a document are the answer, learned from the train questions."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

WORD = re.compile(r"\w+|[^\w\s]")
# A letter that is not lower case, in alphabets with cases: Latin with its accents, Greek, Cyrillic, Georgian.
CAPITAL = rf"[^\W\d_{''.join(filter(str.islower, map(chr, range(0x2000))))}]"
CAPITALISED = re.compile(rf"(?<!\w){CAPITAL}[\w'-]*")
PENALTY = 1.0  # of the squared weights; 0.1 to 1 score alike in five-fold cross-validation
STEPS = 200  # of L-BFGS, which needs about 60
CUE_WORDS, CUE_CHARACTERS = 6, 100  # how far before an answer its cue stands
MIN_CUE_LENGTH = 4  # letters; shorter words are mostly prepositions

Span = tuple[int, int]


@lru_cache(maxsize=2)  # preflight and training both call it
def score_answer_spans(
    documents: tuple[str, ...], titles: tuple[str, ...], people: tuple[str, ...], places: tuple[str, ...]
) -> tuple[list[list[Span]], list[list[float]]]:
    """Candidate answer spans of every document, with the likelihood of each.

    Candidates are the capitalised words after the title and the train answers, such as places. A conditional
    logit scores them by the words around them, their rank, and how often they are a train answer. It is
    fitted to the documents of train people, whose answer is labelled; these keep only the answer itself.

    Args:
        documents: lines.
        titles: the name that each begins with, followed by ". ", or "".
        people, places: of the train questions.

    Returns:
        (start, end) of the candidates of every document, and their probabilities, relative to the likeliest.
    """
    gazetteer = Counter(place for place in places if place)
    answers = dict(zip(people, places, strict=True))
    spans = _candidates(documents, titles, gazetteer)
    names = [title.removesuffix(". ") for title in titles]
    labels = [
        [document[start:end] == answers.get(name) for start, end in row]
        for document, name, row in zip(documents, names, spans, strict=True)
    ]
    cue = _cue(documents, spans, labels)
    features = [
        [_features(document, row, rank, gazetteer, cue, label) for rank, label in enumerate(row_labels)]
        for document, row, row_labels in zip(documents, spans, labels, strict=True)
    ]
    scores = iter(_scores(features, labels))
    probabilities = []
    for row_labels in labels:
        row_scores = [*islice(scores, len(row_labels))]
        if any(row_labels):
            row_scores = [
                score if is_answer else -math.inf
                for score, is_answer in zip(row_scores, row_labels, strict=True)
            ]
        highest = max(row_scores, default=0.0)
        # Rounded: the last bits of the fit depend on the number of threads, but batches must not.
        probabilities.append([round(math.exp(score - highest), 3) for score in row_scores])
    return spans, probabilities


def _candidates(documents: Sequence[str], titles: Sequence[str], gazetteer: Counter[str]) -> list[list[Span]]:
    lengths: dict[str, set[int]] = {}  # of the answers, by their first word
    for answer in gazetteer:
        lengths.setdefault(WORD.findall(answer)[0], set()).add(len(answer))
    longest_first = {word: sorted(of_word, reverse=True) for word, of_word in lengths.items()}
    candidates = []
    for document, title in zip(documents, titles, strict=True):
        capitalised = (match.span() for match in CAPITALISED.finditer(document, len(title)))
        answers = _find_answers(document, len(title), gazetteer, longest_first)
        candidates.append(sorted({*capitalised, *answers}))
    return candidates


def _find_answers(
    document: str, start: int, answers: Collection[str], lengths: Mapping[str, Sequence[int]]
) -> Iterator[Span]:
    """Where answers stand as whole words, from left to right without overlap, the longest one at each place.

    The time hardly grows with the number of answers: there is one look into a set for each of their lengths.

    Args:
        lengths: of the answers, longest first, by their first word.
    """
    end = start
    for word in WORD.finditer(document, start):
        first = word.start()
        if first < end or (first and _in_word(document[first - 1])):
            continue
        for length in lengths.get(word[0], ()):
            last = first + length
            if (
                document[first:last] in answers
                and last <= len(document)
                and not _in_word(document[last : last + 1])
            ):
                yield first, last
                end = last
                break


def _in_word(character: str) -> bool:
    return character == "_" or character.isalnum()


def _cue(documents: Sequence[str], spans: list[list[Span]], labels: list[list[bool]]) -> str:
    """The word that stands before the labelled answers more often than before other candidates: "born".

    Empty if no document is labelled.
    """
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    totals = Counter(label for row in labels if any(row) for label in row)
    for document, row, row_labels in zip(documents, spans, labels, strict=True):
        if any(row_labels):
            for (start, _), is_answer in zip(row, row_labels, strict=True):
                words = WORD.findall(document, max(0, start - CUE_CHARACTERS), start)[-CUE_WORDS:]
                counts[is_answer].update({w for w in words if w.islower() and len(w) >= MIN_CUE_LENGTH})

    def difference(word: str) -> tuple[float, str]:
        answers, others = (counts[label][word] / max(1, totals[label]) for label in (True, False))
        return answers - others, word

    return max(counts[True], key=difference, default="")


def _features(
    document: str, spans: list[Span], rank: int, gazetteer: Counter[str], cue: str, is_answer: bool
) -> list[str]:
    """Features of one candidate; the person's own answer is left out of its frequency."""
    start, end = spans[rank]
    before = [_shape(word) for word in WORD.findall(document, max(0, start - 40), start)[-2:]]
    after = [_shape(word) for word in WORD.findall(document, end, end + 30)[:2]]
    cue_start = document.rfind(cue, 0, start) if cue else -1
    distance = len(WORD.findall(document, cue_start, start)) // 2 if cue_start >= 0 else 99
    last, following = " ".join(before[-1:]), " ".join(after[:1])
    return [
        f"answers {min(3, int(math.log2(gazetteer[document[start:end]] - is_answer + 1)))}",
        f"before {' '.join(before)}",
        f"last {last}",
        f"last but one {' '.join(before[:-1])}",
        f"after {' '.join(after)}",
        f"next {following}",
        f"around {last} _ {following}",
        f"rank {min(rank, 8)}",
        f"since cue {min(distance, 6)}",
        f"of the name {document[start:end] in document[: spans[0][0]]}",
    ]


def _shape(word: str) -> str:
    """1 for a number, A for a capitalised word; any other word stands for itself."""
    return "1" if word[0].isdigit() else "A" if word[0].isupper() else word


def _scores(features: list[list[list[str]]], labels: list[list[bool]]) -> list[float]:
    """Logits of every candidate, one document after the other.

    Maximises sum log p(labelled candidate of the document) - PENALTY |w|^2 over the labelled documents.
    """
    feature_ids: dict[str, int] = {}
    rows = [
        [feature_ids.setdefault(feature, len(feature_ids)) for feature in candidate]
        for document in features
        for candidate in document
    ]
    if not rows:
        return []
    ids = torch.tensor(rows)  # (candidates, features)
    counts = torch.tensor([len(document) for document in features])
    document_ids = torch.arange(len(features)).repeat_interleave(counts)
    is_answer = torch.tensor([label for row in labels for label in row])
    labelled = torch.zeros(len(features), dtype=torch.bool).index_fill_(0, document_ids[is_answer], True)
    weights = torch.zeros(len(feature_ids), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )
    in_labelled = labelled[document_ids]
    train_ids, train_documents, train_answers = (x[in_labelled] for x in (ids, document_ids, is_answer))

    def sum_by_document(values: Tensor, documents: Tensor) -> Tensor:
        return values.new_zeros(len(features)).index_add(0, documents, values)[labelled]

    def objective() -> Tensor:
        optimizer.zero_grad()
        odds = weights[train_ids].sum(1).exp()
        total = sum_by_document(odds, train_documents)
        answer = sum_by_document(odds[train_answers], train_documents[train_answers])
        loss: Tensor = (total.log() - answer.log()).sum() + PENALTY * weights.square().sum()
        loss.backward()
        return loss

    if labelled.any():
        optimizer.step(objective)
    with torch.no_grad():
        scores: list[float] = weights[ids].sum(1).tolist()
    return scores
