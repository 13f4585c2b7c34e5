"""Exact probabilities of a closed set of answers: every place for every question.

A trie over the answers is walked once for a whole batch of questions. Every row of the batch keeps one cache;
siblings of the trie overwrite each other's positions in it, so nothing is copied.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.partial_forward import read_prompts

BATCH = 128  # questions that walk the trie together


@dataclass
class _Edge:
    """A piece of one or more answers: characters without a branch.

    Attributes:
        ids: of its characters.
        answer: index of the answer that ends with it, or None.
        children: what may follow.
    """

    ids: list[int]
    answer: int | None = None
    children: list["_Edge"] = field(default_factory=list)


def answer_log_probabilities(
    model: GPT,
    vocab: CharVocab,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[str],
    top: int | None = None,
) -> Tensor:
    """log P(answer and its closing MASK | prompt), (prompts, answers), in nats.

    Equals scoring each answer by itself. The probabilities of one prompt sum to at most 1; what is missing is
    that of all other texts. An answer that does not fit behind a prompt, or has characters outside the
    vocabulary, has probability 0.

    Args:
        model: in evaluation mode, on any device.
        prompts: ids; `question MASK` for questions.
        answers: distinct texts, such as places.
        top: only so many likeliest answers are needed; others may get probability 0. Much faster for a few
            prompts: a branch that cannot lead to one of them is left out.

    Raises:
        ValueError: a prompt is empty or does not fit into the block.
    """
    if any(not 0 < len(prompt) < model.block_size for prompt in prompts):
        raise ValueError(f"a prompt must have 1 to {model.block_size - 1} characters")
    encoded = [vocab.encode(answer) if all(c in vocab for c in answer) else None for answer in answers]
    trie = _trie([None if ids is None else [*ids, vocab.mask_id] for ids in encoded])
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    scores = torch.full((len(prompts), len(answers)), -torch.inf)
    with torch.inference_mode():
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            batch = [prompts[i] for i in rows]
            for answer, log_probability in _walk(model, trie, batch, vocab.pad_id, top):
                scores[rows, answer] = log_probability.cpu()
    return scores


def _trie(answers: Sequence[list[int] | None]) -> list[_Edge]:
    """The edges that leave the root."""
    present = [(ids, number) for number, ids in enumerate(answers) if ids is not None]
    return _edges(sorted(present), 0)


def _edges(answers: Sequence[tuple[list[int], int]], depth: int) -> list[_Edge]:
    """The edges of sorted answers that agree in their first `depth` characters."""
    edges = []
    start = 0
    while start < len(answers):
        end = start
        while end < len(answers) and answers[end][0][depth] == answers[start][0][depth]:
            end += 1
        group = answers[start:end]
        (ids, number), (other, _) = group[0], group[-1]
        stop = depth + 1
        while stop < min(len(ids), len(other)) and ids[stop] == other[stop]:
            stop += 1
        if len(group) == 1:
            edges.append(_Edge(ids[depth:], number))
        else:  # every answer ends with MASK, which no answer contains: none is the beginning of another
            edges.append(_Edge(ids[depth:stop], None, _edges(group, stop)))
        start = end
    return edges


def _walk(
    model: GPT, trie: Sequence[_Edge], prompts: Sequence[Sequence[int]], pad_id: int, top: int | None
) -> Iterator[tuple[int, Tensor]]:
    """The index of each answer with its log-probability (B) after each prompt."""
    width = max(map(len, prompts))
    logits, lengths, cache = read_prompts(model, prompts, pad_id, model.block_size)
    device = logits.device
    room = model.block_size - lengths
    best = torch.full((len(prompts), top or 1), -torch.inf, device=device)  # of the answers so far

    def visit(
        edges: Sequence[_Edge], depth: int, total: Tensor, next_log_p: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        nonlocal best
        starts = {id(edge): total + next_log_p[:, edge.ids[0]] for edge in edges}
        if top is not None:
            edges = sorted(edges, key=lambda edge: -float(starts[id(edge)].max()))
        for edge in edges:
            score = starts[id(edge)]
            if top is not None and (score <= best.amin(1)).all():
                continue  # an answer is at most as likely as its beginning
            # The closing MASK is predicted, never read.
            read = edge.ids[:-1] if edge.answer is not None else edge.ids
            after = next_log_p
            if read:
                offsets = depth + torch.arange(len(read), device=device)
                positions = lengths[:, None] + offsets
                fits = positions[:, -1] < model.block_size
                positions = positions.clamp(max=model.block_size - 1)  # such rows end with probability 0
                cache.set_positions(positions, min(model.block_size, width + depth + len(read)))
                characters = torch.tensor(read, device=device).expand(len(prompts), -1)
                log_p = model(characters, cache).float().log_softmax(-1)
                following = torch.tensor(edge.ids[1:], device=device)
                score = score + log_p[:, : len(following)].gather(
                    2, following.expand(len(prompts), -1)[..., None]
                )[..., 0].sum(1)
                score = score.where(fits, -torch.inf)
                after = log_p[:, -1]
            if edge.answer is not None:
                score = score.where(room + 1 >= depth + len(edge.ids), -torch.inf)
                if top is not None:
                    best = torch.cat((best, score[:, None]), 1).topk(top, 1).values
                yield edge.answer, score
            else:
                yield from visit(edge.children, depth + len(edge.ids), score, after)

    yield from visit(trie, 0, torch.zeros(len(prompts), device=device), logits.float().log_softmax(-1))
