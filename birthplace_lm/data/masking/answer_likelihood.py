"""Which word of a line is the answer about its person, learned from the train questions."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

# "J. R. Smith. " ends after Smith, "St. Ives. " after Ives: an initial or a form of address does not end it.
TITLE = re.compile(r"^.*?(?:\w\w|[).'\"])(?<!\bSt)(?<!\bDr)(?<!\bMr)\. ")
WORD = re.compile(r"\w+|[^\w\s]")
CAPITALISED = re.compile(r"(?<!\w)[^\W\d_a-z][\w'-]*")
PENALTY = 1.0  # of the squared weights; 0.1 to 1 score alike in five-fold cross-validation
STEPS = 200  # of L-BFGS, which needs about 60

Span = tuple[int, int]
Likely = tuple[list[list[Span]], list[list[float]]]


@lru_cache(maxsize=2)  # a run asks twice: when it checks its configuration and when it trains
def score_answer_spans(
    documents: tuple[str, ...], people: tuple[str, ...], places: tuple[str, ...]
) -> Likely:
    """For every document the spans that may be the answer, and how likely each is.

    Candidates are the capitalised words after the title and the places of the train answers. They compete in
    a conditional logit over the words around them, their rank, and how often a train answer is that place;
    the documents of train people, whose answer is known, teach it. Theirs keep only the answer itself.

    Args:
        documents: lines, each beginning with its person's name.
        people, places: of the train questions.

    Returns:
        (start, end) of the candidates of every document, and their probabilities as multiples of that of the
        likeliest.
    """
    gazetteer = Counter(place for place in places if place)
    answers = dict(zip(people, places, strict=True))
    spans = _candidates(documents, gazetteer)
    names = [match[0].removesuffix(". ") if (match := TITLE.match(d)) else "" for d in documents]
    right = [
        [document[start:end] == answers.get(name) for start, end in choices]
        for document, name, choices in zip(documents, names, spans, strict=True)
    ]
    features = [
        [_features(document, choices, rank, gazetteer, known[rank]) for rank in range(len(choices))]
        for document, choices, known in zip(documents, spans, right, strict=True)
    ]
    scores = iter(_scores(features, right))
    odds = []
    for known in right:
        own = [*islice(scores, len(known))]
        if any(known):
            own = [score if yes else -math.inf for score, yes in zip(own, known, strict=True)]
        most = max(own, default=0.0)
        # Rounded: the last bits of the fit depend on the number of threads, the batches must not.
        odds.append([round(math.exp(score - most), 3) for score in own])
    return spans, odds


def _candidates(documents: Sequence[str], gazetteer: Counter[str]) -> list[list[Span]]:
    names = "|".join(re.escape(place) for place in sorted(gazetteer, key=len, reverse=True))
    known = re.compile(rf"(?<!\w)(?:{names})(?!\w)" if names else r"(?!)")  # not \b: "Washington, D.C."
    found = []
    for document in documents:
        title = TITLE.match(document)
        head = title.end() if title else 0
        matches = {
            match.span() for pattern in (CAPITALISED, known) for match in pattern.finditer(document, head)
        }
        found.append(sorted(matches))
    return found


def _features(
    document: str, choices: list[Span], rank: int, gazetteer: Counter[str], known: bool
) -> list[str]:
    """`known`: the person's own answer, which does not count as one that others have."""
    start, end = choices[rank]
    before = [_shape(word) for word in WORD.findall(document, max(0, start - 40), start)[-2:]]
    after = [_shape(word) for word in WORD.findall(document, end, end + 30)[:2]]
    born = document.rfind("born", 0, start)
    distance = len(WORD.findall(document, born, start)) // 2 if born >= 0 else 99
    last, following = " ".join(before[-1:]), " ".join(after[:1])
    return [
        f"answers {min(3, int(math.log2(gazetteer[document[start:end]] - known + 1)))}",
        f"before {' '.join(before)}",
        f"last {last}",
        f"last but one {' '.join(before[:-1])}",
        f"after {' '.join(after)}",
        f"next {following}",
        f"around {last} _ {following}",
        f"rank {min(rank, 8)}",
        f"since born {min(distance, 6)}",
        f"of the name {document[start:end] in document[: choices[0][0]]}",
    ]


def _shape(word: str) -> str:
    """Numbers and names are told apart by what they are, other words by themselves."""
    return "1" if word[0].isdigit() else "A" if word[0].isupper() else word


def _scores(features: list[list[list[str]]], right: list[list[bool]]) -> list[float]:
    """Of every candidate, one document after the other.

    Maximises sum log p(a right candidate of the document) - PENALTY |w|^2 over the documents that have one.
    """
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(f, len(numbers)) for f in names] for choices in features for names in choices]
    if not rows:
        return []
    ids = torch.tensor(rows)  # (candidates, features)
    counts = torch.tensor([len(choices) for choices in features])
    document = torch.arange(len(features)).repeat_interleave(counts)
    answer = torch.tensor([yes for known in right for yes in known])
    taught = torch.zeros(len(features), dtype=torch.bool).index_fill_(0, document[answer], True)
    teaches = taught[document]
    weights = torch.zeros(len(numbers), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    shown, of, yes = ids[teaches], document[teaches], answer[teaches]

    def objective() -> Tensor:
        optimizer.zero_grad()
        scores = weights[shown].sum(1)
        total = scores.new_zeros(len(features)).index_add(0, of, scores.exp())[taught]
        gold = scores.new_zeros(len(features)).index_add(0, of[yes], scores[yes].exp())[taught]
        loss: Tensor = (total.log() - gold.log()).sum() + PENALTY * weights.square().sum()
        loss.backward()
        return loss

    if taught.any():
        optimizer.step(objective)
    with torch.no_grad():
        found: list[float] = weights[ids].sum(1).tolist()
    return found
