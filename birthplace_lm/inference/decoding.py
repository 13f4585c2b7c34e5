"""Greedy decoding of answers, many questions at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.kv_cache import KVCache

LONGEST_ANSWER = 32
COMPACT_BELOW = (
    0.5  # copying the cache for the rows that have not ended costs more than going on with all of them
)


@dataclass(frozen=True)
class Answer:
    """What the model says to one question.

    Attributes:
        text: the characters between the first and the second MASK.
        log_probability: of `text` and the closing MASK given the question, in nats.
    """

    text: str
    log_probability: float

    @property
    def line(self) -> str:
        """The text as one line of a predictions file."""
        return " ".join(self.text.splitlines())


def answer_questions(
    model: GPT,
    vocab: CharVocab,
    questions: Sequence[str],
    batch_size: int = 256,
    max_answer_length: int = LONGEST_ANSWER,
) -> list[Answer]:
    """Answer every question greedily; the batch a question falls into does not change its answer.

    A question is read as `question MASK`; the answer ends with the next MASK or after `max_answer_length`
    characters, at most half of the block.
    Characters that the vocabulary lacks are dropped from the question, as is what does not fit into the
    block in front of the answer (from its beginning).

    Args:
        model: in evaluation mode, on any device.
    """
    max_answer_length = min(max_answer_length, model.block_size // 2)
    prompts = [_prompt(vocab, question, model.block_size - max_answer_length) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths decode together
    answers: dict[int, Answer] = {}
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            for index, (ids, log_probability) in zip(
                batch, _decode(model, vocab, [prompts[i] for i in batch], max_answer_length), strict=True
            ):
                answers[index] = Answer(vocab.decode(ids), log_probability)
    return [answers[i] for i in range(len(prompts))]


def _prompt(vocab: CharVocab, question: str, room: int) -> list[int]:
    known, _ = vocab.encode_known(question)
    return [*known[-(room - 1) :], vocab.mask_id]


def _decode(
    model: GPT, vocab: CharVocab, prompts: Sequence[list[int]], max_answer_length: int
) -> Iterator[tuple[list[int], float]]:
    """Ids of each answer without its closing MASK, and its log-probability."""
    device = model.tok_emb.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.tensor([p + [vocab.pad_id] * (width - len(p)) for p in prompts], device=device)
    cache = KVCache(model.n_layer, width + max_answer_length)
    # All questions begin alike: what they share is read once. The last character of each is its own.
    alike = (ids == ids[:1]).all(0).long().cumprod(0)
    shared = min(int(alike.sum()), int(lengths.min()) - 1)
    # Prompts are padded on the right: what a row computes for its padding is overwritten before it is seen.
    last = torch.arange(width, device=device) == lengths[:, None] - 1
    logits = model.read(ids, shared, cache, at=last)

    texts: list[list[int]] = [[] for _ in prompts]
    scores = torch.zeros(len(prompts), device=device)
    rows = torch.arange(len(prompts), device=device)  # those that the cache holds
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)  # and which of them have not ended
    for step in range(max_answer_length):
        best, chosen = torch.log_softmax(logits.float(), dim=-1).max(dim=-1)
        scores[rows] += best.where(going, 0.0)
        going = going & (chosen != vocab.mask_id)
        for row, symbol, on in zip(rows.tolist(), chosen.tolist(), going.tolist(), strict=True):
            if on:
                texts[row].append(symbol)
        left = int(going.sum())
        if left == 0 or step == max_answer_length - 1:
            break
        if left <= COMPACT_BELOW * len(rows):
            kept = going.nonzero()[:, 0]
            cache.keep(kept)
            rows, chosen, going = rows[kept], chosen[kept], going[kept]
        cache.move_to((lengths[rows] + step)[:, None], width + step + 1)
        logits = model(chosen[:, None], cache)[:, 0]
    return zip(texts, scores.tolist(), strict=True)
