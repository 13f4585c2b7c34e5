"""Greedy decoding of answers, many questions per batch, with a key/value cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from birthplace_lm.data.questions import MAX_ANSWER_LENGTH, answer_room
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import InputError
from birthplace_lm.models.gpt import GPT
from birthplace_lm.models.partial_forward import read_prompts

# Share of active rows. Above it, copying the cache costs more than decoding the finished rows, too.
COMPACT_BELOW = 0.5


@dataclass(frozen=True)
class Answer:
    """The model's answer to one question.

    Attributes:
        text: the characters between the first and the second MASK.
        log_probability: of `text` and the closing MASK given the question, in nats; also where the answer was
            cut off before that MASK.
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
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> list[Answer]:
    """Answer every question greedily. The batch that a question is in does not change its answer.

    The prompt is `question MASK`. The answer ends with the next MASK or after `max_answer_length` characters,
    at most half of the block. A character outside the vocabulary is replaced by its equivalent, or dropped. A
    question that does not fit into the rest of the block loses its beginning.

    Args:
        model: in evaluation mode, on any device.
    """
    max_answer_length = answer_room(model.block_size, max_answer_length)
    prompts = [question_prompt(model, vocab, question, max_answer_length) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths decode together
    answers: dict[int, Answer] = {}
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            for index, (ids, log_probability) in zip(
                batch, _decode(model, vocab, [prompts[i] for i in batch], max_answer_length), strict=True
            ):
                answers[index] = Answer(vocab.decode(ids), log_probability)
    return [answers[i] for i in range(len(prompts))]


def question_prompt(
    model: GPT, vocab: CharVocab, question: str, max_answer_length: int = MAX_ANSWER_LENGTH
) -> list[int]:
    """The ids of `question MASK`; a question that leaves no room for an answer loses its beginning."""
    max_length = model.block_size - answer_room(model.block_size, max_answer_length)
    ids, _ = vocab.encode_known(vocab.replace_unknown(question))
    return [*ids[-(max_length - 1) :], vocab.mask_id]


def text_ids(model: GPT, vocab: CharVocab, text: str) -> list[int]:
    """The ids of a text without unknown characters, or of its end if it is longer than the block.

    Raises:
        InputError: the text has no character that the model knows.
    """
    ids = vocab.encode("".join(c for c in vocab.replace_unknown(text) if c in vocab))
    if not ids:
        raise InputError(f"text={text!r}: has no character that the model knows; give a question")
    return ids[-model.block_size :]


def _decode(
    model: GPT, vocab: CharVocab, prompts: Sequence[list[int]], max_answer_length: int
) -> Iterator[tuple[list[int], float]]:
    """Ids of each answer without its closing MASK, and its log-probability."""
    width = max(map(len, prompts))
    logits, lengths, cache = read_prompts(model, prompts, vocab.pad_id, width + max_answer_length)
    device = logits.device

    answers: list[list[int]] = [[] for _ in prompts]
    scores = torch.zeros(len(prompts), device=device)
    rows = torch.arange(len(prompts), device=device)  # the prompts that the cache holds
    active = torch.ones(len(prompts), dtype=torch.bool, device=device)  # those of `rows` without an end yet
    for step in range(max_answer_length + 1):
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        if step == max_answer_length:  # cut off: the MASK did not come by itself
            scores[rows] += log_probabilities[:, vocab.mask_id].where(active, 0.0)
            break
        best, symbols = log_probabilities.max(dim=-1)
        scores[rows] += best.where(active, 0.0)
        active = active & (symbols != vocab.mask_id)
        for row, symbol, is_active in zip(rows.tolist(), symbols.tolist(), active.tolist(), strict=True):
            if is_active:
                answers[row].append(symbol)
        n_active = int(active.sum())
        if n_active == 0:
            break
        if n_active <= COMPACT_BELOW * len(rows):
            indices = active.nonzero()[:, 0]
            cache.select_rows(indices)
            rows, symbols, active = rows[indices], symbols[indices], active[indices]
        cache.set_positions((lengths[rows] + step)[:, None], width + step + 1)
        logits = model(symbols[:, None], cache)[:, 0]
    return zip(answers, scores.tolist(), strict=True)
